"""Lists of the command line: as long as they are asked for, whatever a page holds."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import httpx2
import pytest

from modelyard.cli import describe, session
from modelyard.cli import main as cli
from modelyard.client import Modelyard
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


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> ScriptedGateway:
    made = ScriptedGateway()

    def client(url: str, *, api_key: str | None) -> Modelyard:
        return Modelyard(url, api_key=api_key, transport=httpx2.MockTransport(made))

    monkeypatch.setattr(session, "Modelyard", client)
    return made


@pytest.fixture
def ran(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process; return its exit code and what it printed."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exited:
            cli.app([*arguments, "--url", "http://gateway"])
        out, err = capsys.readouterr()
        return int(exited.value.code or 0), out, err

    return run


Ran = Callable[..., tuple[int, str, str]]


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


def test_the_oldest_loaded_job_of_a_model_is_described(gateway: ScriptedGateway, ran: Ran) -> None:
    gateway.jobs = [
        *jobs(JobState.TERMINATED, 300),
        *jobs(JobState.FAILED, 1, age=300),
        *jobs(JobState.LOADED, 1, age=400),
    ]
    code, out, err = ran("describe", "model", "m")
    assert (code, err) == (0, "")
    assert out.index("failed-0") < out.index("loaded-0")  # newest first
    assert "terminated" not in out
    _, out, _ = ran("describe", "model", "m", "--json")
    assert [one["job_id"] for one in json.loads(out)["jobs"]] == ["failed-0", "loaded-0"]


def test_a_job_that_changes_while_it_is_asked_for_is_described_once(
    gateway: ScriptedGateway, ran: Ran
) -> None:
    (one,) = jobs(JobState.CREATED, 1)
    gateway.jobs = [one, one.model_copy(update={"state": JobState.LOADED})]
    _, out, _ = ran("describe", "model", "m", "--json")
    assert [one["state"] for one in json.loads(out)["jobs"]] == ["LOADED"]


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_all_jobs_of_a_host_are_described(
    gateway: ScriptedGateway, ran: Ran, options: tuple[str, ...]
) -> None:
    gateway.jobs = jobs(JobState.LOADED, LARGEST_PAGE + 1)
    code, out, err = ran("describe", "host", "h", *options)
    assert (code, err) == (0, "")
    assert f"loaded-{LARGEST_PAGE}" in out


@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize("what", ["host", "model"])
def test_a_description_that_leaves_jobs_out_says_so(
    gateway: ScriptedGateway,
    ran: Ran,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    options: tuple[str, ...],
) -> None:
    monkeypatch.setattr(describe, "_MOST", 2)
    gateway.jobs = jobs(JobState.LOADED, 3)
    code, _, err = ran("describe", what, what[0], *options)
    assert code == 0
    assert f"There are more: `modelyard jobs --{what} {what[0]}`" in err


@pytest.mark.parametrize("what", ["jobs", "operations"])
@pytest.mark.parametrize("limit", [LARGEST_PAGE, LARGEST_PAGE + 1, 3 * LARGEST_PAGE])
def test_a_limit_may_be_larger_than_a_page(
    gateway: ScriptedGateway, ran: Ran, what: str, limit: int
) -> None:
    count = 2 * LARGEST_PAGE
    gateway.jobs = jobs(JobState.LOADED, count)
    gateway.operations = operations(*[OperationState.SUCCEEDED] * count)
    _, out, err = ran(what, "--limit", str(limit), "--json")
    assert len(json.loads(out)) == min(limit, count)
    assert ("There are older ones" in err) is (limit < count)
    assert len(gateway.asked) == -(-min(limit, count) // LARGEST_PAGE)


def test_dead_letters_are_read_in_pages_too(gateway: ScriptedGateway, ran: Ran) -> None:
    letter = DeadLetterSummary(
        dead_letter_id="d",
        reason="invalid_json",
        detail="",
        queue="q",
        payload_bytes=1,
        recorded_at=BEGAN,
    )
    gateway.dead_letters = [letter] * (LARGEST_PAGE + 5)
    _, out, err = ran("dead-letters", "list", "--limit", "1000", "--queue", "q", "--json")
    assert (len(json.loads(out)), err) == (LARGEST_PAGE + 5, "")


def test_a_job_stands_for_an_open_operation_that_many_have_overtaken(
    gateway: ScriptedGateway, ran: Ran
) -> None:
    ended = [OperationState.SUCCEEDED] * 300
    gateway.operations = operations(*ended, OperationState.RUNNING)
    ran("explain", "j")
    overtaken = gateway.operations[-1].operation_id
    assert gateway.asked[-1].url.path == f"/v1/operations/{overtaken}/explain"


def test_a_job_stands_for_its_newest_result_however_old(gateway: ScriptedGateway, ran: Ran) -> None:
    with_result = operations(*[OperationState.SUCCEEDED] * 300, result=2)[-1]
    gateway.operations = [*operations(*[OperationState.CANCELLED] * 299), with_result]
    ran("result", "j")
    assert gateway.asked[-1].url.path.endswith(f"{with_result.operation_id}/result")
