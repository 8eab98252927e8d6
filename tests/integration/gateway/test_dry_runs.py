"""Dry runs at the door of a gateway: they say what a request would come to, and make nothing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from pymongo import MongoClient

from modelyard.contract.access.scopes import Scope
from modelyard.contract.capacity.local_content import LocalContent
from modelyard.contract.catalog.entries import ModelSpec, Profile
from modelyard.contract.catalog.images import full_reference
from modelyard.contract.ids import operation_id_for_key
from modelyard.contract.states import JobState, OperationState, Verb
from modelyard.contract.topology import JOBS_QUEUE
from modelyard.store import Store
from tests.support.dispatcher.driver import MODEL, running_dispatcher
from tests.support.dispatcher.scripted_host import scripted_host
from tests.support.gateway import Json, ServedGateway, bearing, fill_catalog, make_key, problem
from tests.support.gateway import serving as serving_a_gateway
from tests.support.large_bodies import FILLS
from tests.support.waiting import eventually

CREATE = {"job_id": "j-1", "operation_type": "DEPLOY_CREATE", "model": MODEL.name}
LOAD = {"job_id": "j-1", "operation_type": "DEPLOY_LOAD"}
INFER = {"job_id": "j-1", "operation_type": "INFER", "input": {"x": 1}}
TERMINATE = {"job_id": "j-1", "operation_type": "TERMINATE"}
TEMP = {"job_id": "j-1", "operation_type": "TEMP", "model": MODEL.name, "input": 1}


@asynccontextmanager
async def serving(mongo_url: str, amqp_url: str, **more: Any) -> AsyncIterator[ServedGateway]:
    async with serving_a_gateway(mongo_url, amqp_url, **more) as served:
        await fill_catalog(served.store)
        await served.store.models.put(MODEL)
        yield served


@pytest.fixture
async def alone(mongo_url: str, amqp_url: str) -> AsyncIterator[ServedGateway]:
    """Give the test a gateway without a dispatcher."""
    async with serving(mongo_url, amqp_url) as served:
        yield served


@pytest.fixture
async def served(mongo_url: str, amqp_url: str, store: Store) -> AsyncIterator[ServedGateway]:
    """Give the test a gateway and a dispatcher."""
    async with serving(mongo_url, amqp_url) as served, running_dispatcher(store, served.broker):
        yield served


async def answer_to(
    served: ServedGateway, request: Any, path: str = "/v1/jobs?dry_run=true", **headers: str
) -> httpx2.Response:
    return await served.client.post(path, json=request, headers=headers)


async def dry_run(served: ServedGateway, request: Json, **headers: str) -> Json:
    answer = await answer_to(served, request, **headers)
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    assert found["reasons"]
    return found


async def ended(served: ServedGateway, request: Json) -> Json:
    operation_id = await served.accepted(**request)
    found: Json = (await served.client.get(f"/v1/operations/{operation_id}?wait=20")).json()
    return found


def everything(mongo_url: str) -> Json:
    """Return all documents of the database, but for the notes of who leads."""
    with MongoClient[Json](mongo_url) as client:
        database = client.get_default_database()
        names = sorted(set(database.list_collection_names()) - {"leases"})
        return {name: list(database[name].find({}).sort("_id", 1)) for name in names}


# --- nothing is made ---


async def test_nothing_is_written_and_nothing_is_published(
    alone: ServedGateway, mongo_url: str
) -> None:
    for key in ("open", "other"):
        await alone.submit(TEMP | {"job_id": "j-2"}, **{"Idempotency-Key": key})
    before, messages = everything(mongo_url), await alone.broker.message_count(JOBS_QUEUE.name)
    for request in (CREATE, LOAD, INFER, TERMINATE, TEMP, TEMP | {"job_id": "j-2"}):
        await dry_run(alone, request)
    for path in ("/inference_router/?dry_run=true", "/inference_router?dry_run=1"):
        assert (await answer_to(alone, TEMP, path)).json()["outcome"] == "waits"
    await dry_run(alone, TEMP, **{"Idempotency-Key": "new", "Prefer": "wait=5"})
    await dry_run(alone, TEMP | {"job_id": "j-2"}, **{"Idempotency-Key": "open"})
    assert (await answer_to(alone, {})).status_code == 422
    assert everything(mongo_url) == before
    assert await alone.broker.message_count(JOBS_QUEUE.name) == messages
    made = await alone.submit(TEMP | {"dataset": "ds-550"}, **{"Idempotency-Key": "new"})
    assert made.json()["operation_id"] == operation_id_for_key("new"), "the key is free"


@pytest.mark.parametrize("value", ["false", "0"])
async def test_only_true_is_a_dry_run(alone: ServedGateway, value: str) -> None:
    answer = await answer_to(alone, TERMINATE, f"/v1/jobs?dry_run={value}")
    assert answer.status_code == 202
    assert len(await alone.published(1)) == 1


@pytest.mark.parametrize("query", ["dry_run=maybe", "dry_run=", "dry_run=true&dry_run=false"])
async def test_an_unclear_wish_is_refused_and_makes_nothing(
    alone: ServedGateway, mongo_url: str, query: str
) -> None:
    before = everything(mongo_url)
    answer = await answer_to(alone, TERMINATE, f"/v1/jobs?{query}")
    assert answer.status_code == 422
    assert problem(answer)["errors"][0]["parameter"] == "dry_run"
    assert everything(mongo_url) == before
    assert await alone.broker.message_count(JOBS_QUEUE.name) == 0


async def path_of_a_retry(alone: ServedGateway) -> str:
    """Return where to retry an operation that has FAILED."""
    failed = await alone.accepted()
    await alone.finish(failed, OperationState.FAILED)
    await alone.published(1)
    return f"/v1/operations/{failed}/retry"


@pytest.mark.parametrize("name", ["dryrun", "dry-run", "wait", "timeout_s"])
async def test_a_parameter_that_is_not_known_is_refused_and_makes_nothing(
    alone: ServedGateway, mongo_url: str, name: str
) -> None:
    retry = await path_of_a_retry(alone)
    before = everything(mongo_url)
    paths = ("/v1/jobs", "/inference_router/", "/v1/jobs/batch", retry, "/v1/models/m-131/infer")
    for path in paths:
        answer = await answer_to(alone, TERMINATE, f"{path}?{name}=true")
        assert answer.status_code == 422, path
        assert problem(answer)["errors"][0]["parameter"] == name
    assert everything(mongo_url) == before
    assert await alone.broker.message_count(JOBS_QUEUE.name) == 0


async def test_who_waits_by_a_parameter_is_told_of_the_header(alone: ServedGateway) -> None:
    answer = await answer_to(alone, TERMINATE, "/v1/jobs?wait=5")
    assert "Prefer: wait=N" in problem(answer)["detail"]


async def test_what_has_no_dry_run_is_not_made_instead(
    alone: ServedGateway, mongo_url: str
) -> None:
    retry = await path_of_a_retry(alone)
    before = everything(mongo_url)
    for path in ("/v1/jobs/batch", retry, "/v1/models/m-131/infer"):
        answer = await answer_to(alone, [TERMINATE], f"{path}?dry_run=true")
        assert answer.status_code == 422, path
        assert problem(answer)["errors"][0]["parameter"] == "dry_run"
    assert everything(mongo_url) == before
    assert await alone.broker.message_count(JOBS_QUEUE.name) == 0


# --- what would be refused ---


@pytest.mark.parametrize(
    ("body", "media_type", "key"),
    [
        (b"{", "application/json", None),
        (b'{"job_id": "a", "job_id": "b"}', "application/json", None),
        (b"[]", "application/json", None),
        (b'{"job_id": "j", "operation_type": "INFER"}', "application/json", None),
        (b'{"job_id": "j", "operation_type": "TEMP", "model": "m-0"}', "application/json", None),
        (
            b'{"job_id": "j", "operation_type": "TEMP", "model": "m-131", "dataset": "d"}',
            "application/json",
            None,
        ),
        (b'"' + b"x" * (1 << 20) + b'"', "application/json", None),
        (b"{}", "text/plain", None),
        (b'{"job_id": "j", "operation_type": "TERMINATE"}', "application/json", "a b"),
        (b'{"job_id": "j", "operation_type": "TERMINATE"}', "application/json", "used"),
    ],
)
async def test_what_a_submit_refuses_is_refused_with_the_same_problem(
    alone: ServedGateway, body: bytes, media_type: str, key: str | None
) -> None:
    await alone.submit(TERMINATE, **{"Idempotency-Key": "used"})
    headers = {"Content-Type": media_type} | ({"Idempotency-Key": key} if key else {})
    asked, made = [
        await alone.client.post(path, content=body, headers=headers)
        for path in ("/v1/jobs?dry_run=true", "/v1/jobs")
    ]
    assert asked.status_code == made.status_code >= 400
    assert problem(asked) | {"request_id": ""} == problem(made) | {"request_id": ""}


async def test_it_takes_the_scopes_of_a_submit_and_shows_hosts_to_those_who_may_read(
    mongo_url: str, amqp_url: str, store: Store
) -> None:
    async with (
        serving(mongo_url, amqp_url, with_keys=True) as served,
        running_dispatcher(store, served.broker),
        scripted_host(served.broker, "h-1"),
    ):
        await eventually(lambda: store.hosts.get("h-1"), what="the host")
        may = {
            name: bearing(await make_key(served.store, *scopes))
            for name, scopes in {
                "read": [Scope.JOBS_READ],
                "infer": [Scope.JOBS_INFER],
                "submit": [Scope.JOBS_SUBMIT],
                "both": [Scope.JOBS_SUBMIT, Scope.JOBS_READ],
            }.items()
        }
        statuses = {
            (name, request["operation_type"]): (
                await answer_to(served, request, **headers)
            ).status_code
            for name, headers in may.items()
            for request in (TEMP, INFER)
        }
        assert statuses == {
            ("read", "TEMP"): 403,
            ("read", "INFER"): 403,
            ("infer", "TEMP"): 403,
            ("infer", "INFER"): 200,
            ("submit", "TEMP"): 200,
            ("submit", "INFER"): 200,
            ("both", "TEMP"): 200,
            ("both", "INFER"): 200,
        }
        assert (await answer_to(served, TEMP)).status_code == 401
        hidden = await dry_run(served, TEMP, **may["submit"])
        shown = await dry_run(served, TEMP, **may["both"])
        assert (hidden["outcome"], hidden["host_id"], hidden["hosts"]) == ("starts", "h-1", [])
        assert [one["host_id"] for one in shown["hosts"]] == ["h-1"]


async def test_a_key_that_was_used_names_its_operation(alone: ServedGateway) -> None:
    first = (await alone.submit(TERMINATE, **{"Idempotency-Key": "k"})).json()["operation_id"]
    found = await dry_run(alone, TERMINATE, **{"Idempotency-Key": "k"})
    assert (found["outcome"], found["operation_id"]) == ("repeats", first)
    assert f"{first} (QUEUED)" in found["reasons"][0]


# --- what would be ---


async def test_each_step_of_a_life_is_foretold_and_then_comes_true(served: ServedGateway) -> None:
    async with scripted_host(served.broker, "h-1") as host:
        await eventually(lambda: served.store.hosts.get("h-1"), what="the host")
        for request in (CREATE, LOAD, INFER, TERMINATE):
            found = await dry_run(served, request)
            assert (found["outcome"], found["host_id"]) == ("starts", "h-1"), request
            assert found["estimated_start_s"] == 0.0
            await served.accepted(**request)
            await host.finish(await host.command(), result_json="1")
            await _quiet(served)
        for request, outcome in ((TERMINATE, "succeeds"), (LOAD, "rejected"), (INFER, "rejected")):
            found = await dry_run(served, request)
            assert found["outcome"] == outcome
            came = await ended(served, request)
            assert came["state"] == ("SUCCEEDED" if outcome == "succeeds" else "REJECTED")
            assert came["error"] == found["error"]


async def _quiet(served: ServedGateway) -> None:
    """Return once no operation of the job is open."""

    async def nothing_open() -> bool:
        return await served.store.operation_queries.open_of_job("j-1") == 0

    await eventually(nothing_open, what="the end of all operations")


async def test_what_is_wrong_with_a_request_and_its_job_is_foretold(served: ServedGateway) -> None:
    other = MODEL.model_copy(update={"name": "other"})
    await served.store.models.put(other)
    async with scripted_host(served.broker, "h-1") as host:
        await served.accepted(**CREATE)
        await host.finish(await host.command())
        await _quiet(served)
        wrong = (
            {**LOAD, "model": "other"},
            {**LOAD, "dataset": "ds-550"},
            {**TERMINATE, "container_id": "cd" * 32},
            INFER,
            {**TEMP, "job_id": "j-2", "model": "m-131", "input": None},
            {**CREATE, "job_id": "j-2", "model": "batch"},
            {**TEMP, "job_id": "j-2", "model": "batch", "input": 1},
        )
        batch = ModelSpec(name="batch", image="x/y", profile=Profile.BATCH)
        await served.store.models.put(batch)
        codes = []
        for request in wrong:
            found, came = await dry_run(served, request), await ended(served, request)
            assert (found["outcome"], came["state"]) == ("rejected", "REJECTED")
            assert found["error"] == came["error"]
            codes.append(came["error"]["code"])
        assert codes == [
            "model_mismatch",
            "dataset_mismatch",
            "container_mismatch",
            "invalid_job_state",
            "missing_input",
            "unsupported_verb",
            "unexpected_input",
        ]


@pytest.mark.parametrize("policy", ["binpack", "spread"])
async def test_the_host_is_the_one_that_the_leader_takes(
    mongo_url: str, amqp_url: str, store: Store, policy: str
) -> None:
    async with (
        serving(mongo_url, amqp_url) as served,
        running_dispatcher(store, served.broker, dispatcher_placement=policy),
        scripted_host(served.broker, "h-2") as two,
    ):
        await served.accepted(**CREATE | {"job_id": "first"})
        await two.finish(await two.command())
        async with scripted_host(served.broker, "h-1") as one:
            await eventually(lambda: store.hosts.get("h-1"), what="the other host")
            found = await dry_run(served, CREATE)
            assert found["host_id"] == {"binpack": "h-2", "spread": "h-1"}[policy]
            await served.accepted(**CREATE)
            taken = {"h-1": one, "h-2": two}[found["host_id"]]
            assert (await taken.command()).job_id == "j-1"


async def test_what_is_open_of_the_job_goes_before_it(served: ServedGateway) -> None:
    async with scripted_host(served.broker, "h-1") as host:
        first = await served.accepted(**CREATE)
        command = await host.command()
        await host.accept(command)
        await served.accepted(**LOAD)

        async def taken_in() -> bool:
            (line,) = (await served.store.jobs.lines(["j-1"])).lines
            return [one.state for one in line.operations] == ["RUNNING", "QUEUED"]

        await eventually(taken_in, what="both in line")
        found = await dry_run(served, INFER)
        assert (found["outcome"], found["ahead_in_line"], found["next_in_line"]) == (
            "waits",
            2,
            first,
        )
        real = await served.accepted(**INFER)

        async def explained() -> Json | None:
            said: Json = (await served.client.get(f"/v1/operations/{real}/explain")).json()
            return said if said["ahead_in_line"] else None

        said = await eventually(explained, what="the same of the operation")
        names = ("reasons", "ahead_in_line", "next_in_line", "hosts", "estimated_start_s")
        assert {name: said[name] for name in names} == {name: found[name] for name in names}


async def test_what_no_dispatcher_has_taken_in_goes_before_it_too(alone: ServedGateway) -> None:
    first = await alone.accepted(**CREATE)
    await alone.accepted(**LOAD)
    found = await dry_run(alone, INFER)
    assert (found["outcome"], found["ahead_in_line"], found["next_in_line"]) == ("waits", 2, first)


async def test_a_long_line_is_counted_whole(alone: ServedGateway) -> None:
    body = [INFER] * 400
    answer = await alone.client.post("/v1/jobs/batch", json=body)
    assert {one["status"] for one in answer.json()["results"]} == {202}
    found = await dry_run(alone, TERMINATE)
    assert (found["outcome"], found["ahead_in_line"]) == ("waits", 400)


async def test_without_room_it_waits_for_the_reasons_of_one_that_waits(
    served: ServedGateway,
) -> None:
    async with scripted_host(served.broker, "h-1", slots=1) as host:
        await served.accepted(**CREATE | {"job_id": "holds"})
        await host.finish(await host.command())
        urgent = await served.accepted(**TEMP | {"job_id": "urgent", "priority": 9})

        async def waits() -> bool:
            found = await served.store.operation_queries.get(urgent)
            return found is not None and bool(found.waiting_for)

        await eventually(waits, what="the reasons of the first")
        found = await dry_run(served, TEMP)
        assert found["outcome"] == "waits"
        assert found["reasons"][0] == "The only host, h-1, does not take it now."
        assert found["ahead_in_waiting_room"] == 1
        ahead = await dry_run(served, TEMP | {"priority": 50})
        assert ahead["ahead_in_waiting_room"] == 0
        real = await served.accepted(**TEMP)

        async def explained() -> Json | None:
            said: Json = (await served.client.get(f"/v1/operations/{real}/explain")).json()
            return said if said["hosts"] else None

        said = await eventually(explained, what="the reasons of the second")
        names = ("reasons", "ahead_in_waiting_room", "hosts")
        assert {name: said[name] for name in names} == {name: found[name] for name in names}


async def test_a_model_that_is_loaded_on_demand_is_loaded_first(served: ServedGateway) -> None:
    on_demand = MODEL.model_copy(
        update={"name": "lazy", "residency": MODEL.residency.model_copy(update={"on_demand": True})}
    )
    await served.store.models.put(on_demand)
    async with scripted_host(served.broker, "h-1") as host:
        await served.accepted(**CREATE | {"model": "lazy"})
        await host.finish(await host.command())
        await _quiet(served)
        found = await dry_run(served, INFER)
        assert (found["outcome"], found["host_id"]) == ("loads_first", "h-1")
        await served.accepted(**INFER)
        loads = await host.command()
        assert loads.verb == "DEPLOY_LOAD"
        await host.finish(loads)
        assert (await host.command()).verb == "INFER"
        job = await served.store.jobs.get("j-1")
        assert job is not None
        assert job.state is JobState.LOADED


async def test_a_large_request_has_a_dry_run_too(alone: ServedGateway) -> None:
    body = b'{"job_id":"j-1","operation_type":"INFER","input":' + FILLS["text"](1 << 18) + b"}"
    answer = await alone.client.post(
        "/v1/jobs?dry_run=true", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 200
    assert answer.json()["error"]["code"] == "invalid_job_state"


# --- what hosts have at hand ---


async def test_the_host_that_tells_of_the_image_is_chosen_and_shown_with_it(
    served: ServedGateway,
) -> None:
    there = LocalContent(images=(full_reference(MODEL.image),), datasets=("ds-1",))
    async with scripted_host(served.broker, "h-1"), scripted_host(served.broker, "h-2") as second:
        await second.look(local=there)

        async def told() -> Json | None:
            host: Json = (await served.client.get("/v1/hosts/h-2")).json()
            return host if host.get("images") else None

        host = await eventually(told)
        assert (host["images"], host["datasets"]) == ([full_reference(MODEL.image)], ["ds-1"])
        found = await dry_run(served, TEMP)
        assert (found["outcome"], found["host_id"]) == ("starts", "h-2")
        assert found["reasons"][1] == "Host h-2 has its image."
        assert {one["host_id"]: one["to_fetch"] for one in found["hosts"]} == {
            "h-1": ["image"],
            "h-2": [],
        }
        hosts = (await served.client.get("/v1/hosts")).json()["hosts"]
        assert [one["images"] for one in hosts] == [[], []], "a list of hosts stays short"
        await served.accepted(**TEMP)
        assert (await second.command()).verb is Verb.TEMP


async def test_what_is_told_for_an_earlier_boot_is_not_believed(served: ServedGateway) -> None:
    async with scripted_host(served.broker, "h-1") as host:
        old = host.incarnation
        host.incarnation = "next"
        await host.come_online()
        host.incarnation = old
        await host.look(local=LocalContent(images=("of-an-earlier-boot",)))
        host.incarnation = "next"
        await host.look(local=LocalContent(images=("now",)))

        async def told() -> list[str] | None:
            found: list[str] = (await served.client.get("/v1/hosts/h-1")).json().get("images", [])
            return found or None

        assert await eventually(told) == ["now"]
