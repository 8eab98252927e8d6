"""The gateway and the dispatcher together: wishes and replays have their effect."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from modelyard.contract.errors import ErrorInfo
from modelyard.contract.states import JobState, OperationState, Phase
from modelyard.contract.topology import JOBS, SUBMIT_KEY
from modelyard.store import Store
from modelyard.store.records import DeadLetter, OperationRecord
from tests.support.dispatcher.driver import MODEL, running_dispatcher
from tests.support.dispatcher.scripted_host import ScriptedHost, scripted_host
from tests.support.gateway import Json, ServedGateway, fill_catalog, serving
from tests.support.waiting import eventually

CREATE = {"job_id": "j-1", "operation_type": "DEPLOY_CREATE", "model": MODEL.name}


@pytest.fixture
async def served(mongo_url: str, amqp_url: str, store: Store) -> AsyncIterator[ServedGateway]:
    async with serving(mongo_url, amqp_url) as served:
        await fill_catalog(store)
        await store.models.put(MODEL)
        # No sweep within the test: what happens, the message has made happen.
        async with running_dispatcher(store, served.broker, dispatcher_sweep_interval_s=60.0):
            yield served


async def test_a_cancel_ends_what_waits_at_once(served: ServedGateway) -> None:
    operation_id = (await served.submit(CREATE)).json()["operation_id"]
    answer = await served.client.post(f"/v1/operations/{operation_id}/cancel?wait=20")
    assert answer.status_code == 200
    assert answer.json()["state"] == "CANCELLED"
    assert answer.json()["error"]["code"] == "cancelled"


async def test_what_waits_behind_another_operation_names_it_also_in_lists(
    served: ServedGateway,
) -> None:
    asked = [(await served.submit(CREATE)).json()["operation_id"]]
    for verb in ("DEPLOY_LOAD", "DEPLOY_UNLOAD"):
        request = {"job_id": "j-1", "operation_type": verb}
        asked.append((await served.submit(request)).json()["operation_id"])

    async def waits() -> list[list[str]] | None:
        paths = [f"/v1/operations/{one}" for one in asked]
        views = [(await served.client.get(path)).json() for path in paths]
        said = [view.get("waiting_for", []) for view in views]
        return said if all(one and "dispatcher" not in one[0] for one in said) else None

    said = await eventually(waits, what="each says what it waits for")
    assert said[0] == ["no host is registered"]
    behind = [f"DEPLOY_CREATE {asked[0]} (QUEUED), the first of its job's line"]
    assert said[1:] == [behind, behind]
    page = (await served.client.get("/v1/operations?job_id=j-1")).json()["operations"]
    assert [one["waiting_for"] for one in reversed(page)] == said


End = Callable[[ServedGateway, ScriptedHost], Awaitable[None]]


async def succeeds(_: ServedGateway, host: ScriptedHost) -> None:
    command = await host.command()
    await host.accept(command)
    await host.report(command, OperationState.RUNNING, seq=2, phase=Phase.PULLING)
    await host.finish(command, result_json='{"y": [1, 2]}')


async def ends_with_its_first_report(_: ServedGateway, host: ScriptedHost) -> None:
    await host.finish(await host.command(), result_json="[7]")


async def fails(_: ServedGateway, host: ScriptedHost) -> None:
    command = await host.command()
    await host.accept(command)
    error = ErrorInfo(code="image_not_found", message="There is none.", detail={"image": 1e22})
    await host.finish(
        command, OperationState.FAILED, job_state=JobState.FAILED, error=error, phase=Phase.PULLING
    )


async def is_cancelled_while_it_runs(served: ServedGateway, host: ScriptedHost) -> None:
    command = await host.command()
    await host.accept(command)
    await served.client.post(f"/v1/operations/{command.operation_id}/cancel")
    await host.control(lambda message: bool(message.cancels))
    error = ErrorInfo(code="cancelled", message="A client asked for it.")
    await host.finish(command, OperationState.CANCELLED, job_state=JobState.FAILED, error=error)


@pytest.mark.parametrize(
    "ends", [succeeds, ends_with_its_first_report, fails, is_cancelled_while_it_runs]
)
async def test_a_wait_is_answered_from_the_event_as_a_read_would_answer(
    served: ServedGateway, monkeypatch: pytest.MonkeyPatch, ends: End
) -> None:
    reads = _counted_reads(served, monkeypatch)
    async with scripted_host(served.broker, "h-1") as host:
        asked = await served.submit({**CREATE, "metadata": {"by": "me"}, "timeout_s": 900.0})
        path = asked.headers["Location"]
        waiting = asyncio.create_task(served.client.get(f"{path}?wait=20"))
        await served.has_waiters()
        await ends(served, host)
        waited = await waiting
    assert reads == [asked.json()["operation_id"]]
    assert OperationState(waited.json()["state"]).terminal
    assert waited.json() == (await served.client.get(path)).json()


async def test_a_wait_for_one_that_never_ran_is_answered_from_the_event_too(
    served: ServedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = await served.submit(CREATE)
    path = asked.headers["Location"]
    waiting = asyncio.create_task(served.client.get(f"{path}?wait=20"))
    await served.has_waiters()
    reads = _counted_reads(served, monkeypatch)
    await served.client.post(f"{path}/cancel")
    waited = await waiting
    assert not reads
    assert waited.json()["state"] == "CANCELLED"
    assert waited.json() == (await served.client.get(path)).json()


def _counted_reads(served: ServedGateway, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the id of each operation that the gateway reads from now on."""
    reads: list[str] = []
    read = served.gateway.reading.operation

    async def counted(operation_id: str) -> OperationRecord | None:
        reads.append(operation_id)
        return await read(operation_id)

    monkeypatch.setattr(served.gateway.reading, "operation", counted)
    return reads


async def test_a_retry_is_dispatched_as_a_new_operation(served: ServedGateway) -> None:
    async with scripted_host(served.broker, "h-1") as host:
        failed = (await served.submit(CREATE)).json()["operation_id"]
        command = await host.command()
        await host.accept(command)
        await host.finish(command, OperationState.FAILED, job_state=JobState.FAILED)
        await served.client.get(f"/v1/operations/{failed}?wait=20")
        asked = await served.client.post(f"/v1/operations/{failed}/retry")
        assert asked.status_code == 202, asked.text
        again = await host.command()
        assert again.operation_id == asked.json()["operation_id"]
        await host.accept(again)
        await host.finish(again)
        ended = await served.client.get(f"{asked.headers['Location']}?wait=20")
        assert (ended.json()["state"], ended.json()["retry_of"]) == ("SUCCEEDED", failed)


@pytest.mark.parametrize("by", ["amqp", "gateway"])
async def test_a_replayed_letter_becomes_new_operations_each_time(
    served: ServedGateway, by: str
) -> None:
    request = {"job_id": "j-1", "operation_type": "TERMINATE"}
    if by == "gateway":
        await served.accepted(**request)
        first = (await served.client.get("/v1/operations")).json()["operations"][0]["operation_id"]
        body = json.dumps({"requests": [{"operation_id": first, "request": request}]}).encode()
    else:
        body = json.dumps(request).encode()
    letter = DeadLetter(
        dead_letter_id="ab" * 20,
        reason="delivery_limit",
        queue="modelyard.jobs.v1",
        routing_key=SUBMIT_KEY,
        message_type="modelyard.submission.v1" if by == "gateway" else None,
        from_modelyard=by == "gateway",
        payload=body,
        payload_bytes=len(body),
    )
    await served.store.dead_letters.add([letter])
    before = 1 if by == "gateway" else 0
    for times in (1, 2):
        answer = await served.client.post(f"/v1/dead-letters/{letter.dead_letter_id}/replay")
        assert answer.status_code == 202

        async def there(count: int = before + times) -> bool:
            page = (await served.client.get("/v1/operations?job_id=j-1")).json()
            return len(page["operations"]) == count

        await eventually(there, what=f"replay {times}")


async def test_a_message_that_is_buried_can_be_read_and_sent_again(served: ServedGateway) -> None:
    await served.broker.publish(JOBS, SUBMIT_KEY, b"\xff{", message_id="mine")

    async def letter(count: int = 1) -> list[Json] | None:
        found = (await served.client.get("/v1/dead-letters?reason=invalid_json")).json()
        letters: list[Json] = found["dead_letters"]
        return letters if len(letters) == count else None

    [one] = await eventually(letter, what="a dead letter")
    assert one["queue"] == "modelyard.jobs.v1"
    assert one["message_id"] == "mine"
    assert one["payload_bytes"] == 2
    path = f"/v1/dead-letters/{one['dead_letter_id']}"
    assert (await served.client.get(path)).json()["payload_encoding"] == "base64"
    assert (await served.client.post(f"{path}/replay")).status_code == 202
    # It is as bad as before, and becomes a letter of its own.
    await eventually(lambda: letter(2), what="a second dead letter")
