"""Lists of the command line: as long as they are asked for, whatever a page holds."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import httpx2
import pytest

from modelyard.cli import describe
from modelyard.client.endpoints import LARGEST_PAGE
from modelyard.contract.answers import (
    DeadLetterPage,
    DeadLetterSummary,
    FootprintList,
    JobPage,
    OperationPage,
)
from modelyard.contract.catalog.entries import ModelSpec, Profile
from modelyard.contract.states import (
    Admission,
    JobState,
    Liveness,
    OperationState,
    Verb,
)
from modelyard.contract.views import HostView, JobView, Links, OperationView
from tests.support.command_line import Ran

T = TypeVar("T")
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
MODEL = ModelSpec(name="m", image="m:1", profile=Profile.OPEN_INFERENCE, port=8080)
HOST = HostView(host_id="h", liveness=Liveness.ONLINE, admission=Admission.OPEN, slots_used=0)


class ScriptedGateway:
    """Answers lists in pages, as a gateway does, from what a test gives it; newest first."""

    def __init__(self) -> None:
        self.jobs: list[JobView] = []
        self.operations: list[OperationView] = []
        self.dead_letters: list[DeadLetterSummary] = []
        self.asked: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request."""
        self.asked.append(request)
        path, asked = request.url.path, dict(request.url.params)
        if path == "/v1/jobs":
            jobs, after = _page(self.jobs, asked)
            content = JobPage(jobs=jobs, next=after).model_dump_json()
        elif path == "/v1/operations":
            operations, after = _page(self.operations, asked)
            content = OperationPage(operations=operations, next=after).model_dump_json()
        elif path == "/v1/dead-letters":
            letters, after = _page(self.dead_letters, asked)
            content = DeadLetterPage(dead_letters=letters, next=after).model_dump_json()
        elif path.endswith("/footprints"):
            content = FootprintList(footprints=()).model_dump_json()
        elif path in ("/v1/hosts/h", "/v1/models/m"):
            content = (HOST if path.endswith("/h") else MODEL).model_dump_json()
        else:
            return httpx2.Response(404, json={"code": "not_found", "detail": "It is not here."})
        return httpx2.Response(200, content=content)


def _page(found: Sequence[T], asked: dict[str, str]) -> tuple[tuple[T, ...], str | None]:
    """Return one page of what meets the filters."""
    size, start = int(asked.pop("limit")), int(asked.pop("cursor", "0"))
    assert size <= LARGEST_PAGE
    fits = [one for one in found if all(getattr(one, key) == value for key, value in asked.items())]
    end = start + size
    return tuple(fits[start:end]), str(end) if end < len(fits) else None


class Listing:
    """The command line, and the gateway that it asks."""

    def __init__(self, run: Callable[..., Ran]) -> None:
        self.gateway = ScriptedGateway()
        self._run = run

    def __call__(self, *arguments: str) -> Ran:
        """Run a command."""
        return self._run(self.gateway, *arguments)


@pytest.fixture
def listing(run: Callable[..., Ran]) -> Listing:
    return Listing(run)


def jobs(state: JobState, count: int, *, age: int = 0) -> list[JobView]:
    """Return jobs of the model, each a second older than the one before; the first is `age` old."""
    return [
        JobView(
            job_id=f"{state.lower()}-{number}",
            state=state,
            model="m",
            host_id="h",
            created_at=BEGAN - timedelta(seconds=age + number),
        )
        for number in range(count)
    ]


def operations(*states: OperationState, result: int | None = None) -> list[OperationView]:
    return [
        OperationView(
            operation_id=f"01890000-0000-7000-8000-{number:012}",
            job_id="j",
            operation_type=Verb.INFER,
            state=state,
            result_bytes=result,
            links=Links(self="/x"),
        )
        for number, state in enumerate(states)
    ]


def test_the_oldest_loaded_job_of_a_model_is_described(listing: Listing) -> None:
    listing.gateway.jobs = [
        *jobs(JobState.TERMINATED, 300),
        *jobs(JobState.FAILED, 1, age=300),
        *jobs(JobState.LOADED, 1, age=400),
    ]
    ran = listing("describe", "model", "m")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.index("failed-0") < ran.out.index("loaded-0")  # newest first
    assert "terminated" not in ran.out
    ran = listing("describe", "model", "m", "--json")
    assert [one["job_id"] for one in json.loads(ran.out)["jobs"]] == ["failed-0", "loaded-0"]


def test_a_job_that_changes_while_it_is_asked_for_is_described_once(listing: Listing) -> None:
    (one,) = jobs(JobState.CREATED, 1)
    listing.gateway.jobs = [one, one.model_copy(update={"state": JobState.LOADED})]
    ran = listing("describe", "model", "m", "--json")
    assert [one["state"] for one in json.loads(ran.out)["jobs"]] == ["LOADED"]


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_all_jobs_of_a_host_are_described(listing: Listing, options: tuple[str, ...]) -> None:
    listing.gateway.jobs = jobs(JobState.LOADED, LARGEST_PAGE + 1)
    ran = listing("describe", "host", "h", *options)
    assert (ran.code, ran.err) == (0, "")
    assert f"loaded-{LARGEST_PAGE}" in ran.out


@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize("what", ["host", "model"])
def test_a_description_that_leaves_jobs_out_says_so(
    listing: Listing,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    options: tuple[str, ...],
) -> None:
    monkeypatch.setattr(describe, "_MOST", 2)
    listing.gateway.jobs = jobs(JobState.LOADED, 3)
    ran = listing("describe", what, what[0], *options)
    assert ran.code == 0
    assert f"There are more: `modelyard jobs --{what} {what[0]}`" in ran.err


@pytest.mark.parametrize("what", ["jobs", "operations"])
@pytest.mark.parametrize("limit", [LARGEST_PAGE, LARGEST_PAGE + 1, 3 * LARGEST_PAGE])
def test_a_limit_may_be_larger_than_a_page(listing: Listing, what: str, limit: int) -> None:
    count = 2 * LARGEST_PAGE
    listing.gateway.jobs = jobs(JobState.LOADED, count)
    listing.gateway.operations = operations(*[OperationState.SUCCEEDED] * count)
    ran = listing(what, "--limit", str(limit), "--json")
    assert len(json.loads(ran.out)) == min(limit, count)
    assert ("There are older ones" in ran.err) is (limit < count)
    assert len(listing.gateway.asked) == -(-min(limit, count) // LARGEST_PAGE)


def test_dead_letters_are_read_in_pages_too(listing: Listing) -> None:
    letter = DeadLetterSummary(
        dead_letter_id="d",
        reason="invalid_json",
        detail="",
        queue="q",
        payload_bytes=1,
        recorded_at=BEGAN,
    )
    listing.gateway.dead_letters = [letter] * (LARGEST_PAGE + 5)
    ran = listing("dead-letters", "list", "--limit", "1000", "--queue", "q", "--json")
    assert (len(json.loads(ran.out)), ran.err) == (LARGEST_PAGE + 5, "")


def test_a_job_stands_for_an_open_operation_that_many_have_overtaken(listing: Listing) -> None:
    ended = [OperationState.SUCCEEDED] * 300
    listing.gateway.operations = operations(*ended, OperationState.RUNNING)
    listing("explain", "j")
    overtaken = listing.gateway.operations[-1].operation_id
    assert listing.gateway.asked[-1].url.path == f"/v1/operations/{overtaken}/explain"


def test_a_job_stands_for_its_newest_result_however_old(listing: Listing) -> None:
    with_result = operations(*[OperationState.SUCCEEDED] * 300, result=2)[-1]
    listing.gateway.operations = [*operations(*[OperationState.CANCELLED] * 299), with_result]
    listing("result", "j")
    assert listing.gateway.asked[-1].url.path.endswith(f"{with_result.operation_id}/result")


def test_a_job_stands_for_the_newest_operation_that_can_be_retried(listing: Listing) -> None:
    states = [OperationState.RUNNING, OperationState.SUCCEEDED, OperationState.TIMED_OUT]
    listing.gateway.operations = operations(*states, OperationState.FAILED)
    ran = listing("retry", "j")
    timed_out = listing.gateway.operations[2].operation_id
    assert listing.gateway.asked[-1].url.path == f"/v1/operations/{timed_out}/retry"
    assert f"operation {timed_out}\n" in ran.err
