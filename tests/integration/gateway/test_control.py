"""Cancelling and retrying operations, draining hosts, dead letters: by HTTP, on real stores."""

import asyncio
import json
import time
from collections.abc import AsyncIterator

import httpx2
import pytest

from deploy.local.mongodb import MongoDB
from deploy.local.rabbitmq import RabbitMQ
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.ids import new_operation_id, operation_id_for_key
from modelyard.contract.message_types import CANCEL_TYPE, SUBMISSION_TYPE
from modelyard.contract.messages import CancelNotice, JobRequest
from modelyard.contract.states import OperationState
from modelyard.contract.topology import JOBS_QUEUE, REPLAY_HEADER, REPORTS_QUEUE, host_queue
from modelyard.store.records import DeadLetter, NewOperation
from tests.support.gateway import (
    Json,
    ServedGateway,
    frozen,
    problem,
    serving_a_fleet,
)

TEMP: Json = {
    "job_id": "j-1",
    "operation_type": "TEMP",
    "model": "m-131",
    "input": {"x": [1e22, "ü"]},
    "priority": 3,
    "timeout_s": 9.5,
    "metadata": {"a.b": "$c"},
}
NOWHERE = "/v1/operations/01890000-0000-7000-8000-000000000000"


@pytest.fixture
async def served(mongo_url: str, amqp_url: str) -> AsyncIterator[ServedGateway]:
    async with serving_a_fleet(mongo_url, amqp_url) as served:
        yield served


# --- cancel ---


async def test_a_cancel_is_recorded_and_the_dispatcher_is_told(served: ServedGateway) -> None:
    operation_id = await served.accepted()
    await served.published(1)
    answer = await served.client.post(f"/v1/operations/{operation_id}/cancel")
    assert answer.status_code == 202
    assert answer.headers["Retry-After"] == "1"
    view = answer.json()
    assert (view["state"], view["cancel_requested"]) == ("QUEUED", True)
    record = await served.store.operation_queries.get(operation_id)
    assert record is not None
    assert record.cancel_requested
    [poke] = await served.messages(1)
    assert poke.type == CANCEL_TYPE
    assert CancelNotice.model_validate_json(poke.body).operation_ids == (operation_id,)


async def test_cancelling_what_is_cancelled_is_200_and_what_ended_otherwise_is_409(
    served: ServedGateway,
) -> None:
    cancelled, succeeded = await served.accepted(), await served.accepted()
    await served.finish(cancelled, OperationState.CANCELLED)
    await served.finish(succeeded)
    for _ in range(2):
        answer = await served.client.post(f"/v1/operations/{cancelled}/cancel")
        assert (answer.status_code, answer.json()["state"]) == (200, "CANCELLED")
    refused = await served.client.post(f"/v1/operations/{succeeded}/cancel")
    assert refused.status_code == 409
    assert problem(refused)["code"] == "already_ended"
    view = (await served.client.get(f"/v1/operations/{succeeded}")).json()
    assert view["cancel_requested"] is False


@pytest.mark.parametrize(
    ("state", "status"), [(OperationState.CANCELLED, 200), (OperationState.SUCCEEDED, 409)]
)
async def test_a_cancel_that_waits_answers_how_it_ended(
    served: ServedGateway, state: OperationState, status: int
) -> None:
    operation_id = await served.accepted()
    path = f"/v1/operations/{operation_id}/cancel?wait=30"
    waiting = asyncio.create_task(served.client.post(path))
    await served.has_waiters()
    await served.finish(operation_id, state)
    async with asyncio.timeout(5):
        assert (await waiting).status_code == status


async def test_a_cancel_whose_wait_is_over_answers_202(served: ServedGateway) -> None:
    operation_id = await served.accepted()
    answer = await served.client.post(f"/v1/operations/{operation_id}/cancel?wait=0.2")
    assert (answer.status_code, answer.json()["state"]) == (202, "QUEUED")


async def test_a_cancel_needs_mongodb_and_not_rabbitmq(
    served: ServedGateway, rabbitmq: RabbitMQ, mongodb: MongoDB
) -> None:
    operation_id = await served.accepted()
    path = f"/v1/operations/{operation_id}/cancel"
    with frozen(rabbitmq):
        answers, seconds = await _timed(served, path, path)
    assert [answer.status_code for answer in answers] == [202, 202]
    assert seconds[0] < 2
    assert seconds[1] < 0.5
    with frozen(mongodb):
        answers, seconds = await _timed(served, path, path)
    assert [answer.status_code for answer in answers] == [503, 503]
    assert seconds[0] < 2
    assert seconds[1] < 0.5
    assert problem(answers[0])["code"] == "unavailable"


async def _timed(served: ServedGateway, *paths: str) -> tuple[list[httpx2.Response], list[float]]:
    answers, seconds = [], []
    for path in paths:
        began = time.monotonic()
        answers.append(await served.client.post(path))
        seconds.append(time.monotonic() - began)
    return answers, seconds


# --- retry ---


async def test_a_retry_is_the_same_request_as_a_new_operation(served: ServedGateway) -> None:
    failed = (await served.submit(TEMP)).json()["operation_id"]
    error = ErrorInfo.of(ErrorCode.EXITED)
    await served.finish(failed, OperationState.FAILED, error=error)
    answer = await served.client.post(f"/v1/operations/{failed}/retry")
    assert answer.status_code == 202, answer.text
    again = answer.json()["operation_id"]
    assert again != failed
    assert answer.headers["Location"] == f"/v1/operations/{again}"
    assert answer.json()["links"]["self"] == answer.headers["Location"]
    view = (await served.client.get(answer.headers["Location"])).json()
    assert view["retry_of"] == failed
    assert (view["state"], view["priority"], view["timeout_s"]) == ("QUEUED", 3, 9.5)
    assert view["metadata"] == {"a.b": "$c"}
    first, second = [one for each in await served.published(2) for one in each.requests]
    assert (second.operation_id, second.retry_of) == (again, failed)
    assert (first.operation_id, first.retry_of) == (failed, None)
    assert second.request == first.request
    old = (await served.client.get(f"/v1/operations/{failed}")).json()
    assert (old["state"], old["retry_of"]) == ("FAILED", None)


async def test_each_retry_is_new_unless_it_has_a_key(served: ServedGateway) -> None:
    failed = await served.accepted(job_id="j-1")
    await served.finish(failed, OperationState.TIMED_OUT)
    path = f"/v1/operations/{failed}/retry"
    fresh = {(await served.client.post(path)).json()["operation_id"] for _ in range(2)}
    assert len(fresh) == 2
    keyed = [await served.client.post(path, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert {one.status_code for one in keyed} == {202}
    assert {one.json()["operation_id"] for one in keyed} == {operation_id_for_key("k")}
    page = (await served.client.get("/v1/operations?job_id=j-1")).json()
    assert len(page["operations"]) == 4


async def test_a_key_of_one_retry_is_not_the_key_of_another(served: ServedGateway) -> None:
    request = {"job_id": "j-1", "operation_type": "TERMINATE"}
    headers = {"Idempotency-Key": "k"}
    first, second = [await served.accepted(**request) for _ in range(2)]
    for one in (first, second):
        await served.finish(one, OperationState.FAILED)
    taken = await served.client.post(f"/v1/operations/{first}/retry", headers=headers)
    assert taken.status_code == 202
    for other in (
        await served.client.post(f"/v1/operations/{second}/retry", headers=headers),
        await served.submit(request, **headers),
    ):
        assert other.status_code == 422
        assert problem(other)["code"] == "idempotency_key_reused"


async def test_a_retry_may_wait_as_a_submission_does(served: ServedGateway) -> None:
    failed = await served.accepted()
    await served.finish(failed, OperationState.CANCELLED)
    path = f"/v1/operations/{failed}/retry"
    headers = {"Idempotency-Key": "k", "Prefer": "wait=30"}
    waiting = asyncio.create_task(served.client.post(path, headers=headers))
    await served.has_waiters()
    await served.finish(operation_id_for_key("k"))
    answer = await waiting
    assert (answer.status_code, answer.json()["state"]) == (200, "SUCCEEDED")


async def test_what_is_open_or_has_succeeded_or_was_no_request_is_not_retried(
    served: ServedGateway,
) -> None:
    is_open, succeeded = await served.accepted(), await served.accepted()
    await served.finish(succeeded)
    rejected = new_operation_id()
    rejection = ErrorInfo.of(ErrorCode.INVALID_REQUEST)
    without_verb = NewOperation(
        operation_id=rejected,
        job_id="j-1",
        verb=None,
        source="amqp",
        payload_hash="x",
        rejection=rejection,
    )
    await served.store.operations.record([without_verb])
    for operation_id in (is_open, succeeded, rejected):
        answer = await served.client.post(f"/v1/operations/{operation_id}/retry")
        assert answer.status_code == 409
        assert problem(answer)["code"] == "not_retryable"


async def test_a_rejected_request_is_retried_if_it_was_kept_as_it_came(
    served: ServedGateway,
) -> None:
    request = JobRequest.model_validate(TEMP | {"model": "late"})
    made = NewOperation.of(new_operation_id(), request, "amqp")
    unknown = ErrorInfo.of(ErrorCode.UNKNOWN_MODEL)
    await served.store.operations.record([made.model_copy(update={"rejection": unknown})])
    path = f"/v1/operations/{made.operation_id}/retry"
    still = await served.client.post(path)
    assert still.status_code == 422
    assert problem(still)["code"] == "unknown_model"
    spec = {"image": "a/b:1", "profile": "batch"}
    await served.client.put("/v1/models/late", json=spec)
    assert (await served.client.post(path)).status_code == 202


# --- drain ---


async def test_a_host_is_drained_until_it_is_cordoned_or_uncordoned(served: ServedGateway) -> None:
    drained = await served.client.post("/v1/hosts/h-1/drain")
    assert drained.status_code == 200
    assert drained.json()["admission"] == "DRAINING"
    assert drained.json()["drain"] == {"move": False, "deadline": None, "done": False}
    moving = await served.client.post("/v1/hosts/h-1/drain?move=true&deadline_s=600")
    assert moving.json()["drain"]["move"] is True
    assert moving.json()["drain"]["deadline"] is not None
    assert (await served.client.get("/v1/hosts/h-1")).json() == moving.json()
    await served.store.hosts.drained("h-1")
    [host] = (await served.client.get("/v1/hosts")).json()["hosts"]
    assert host["drain"]["done"] is True
    for action, admission in (("cordon", "CORDONED"), ("uncordon", "OPEN")):
        await served.client.post("/v1/hosts/h-1/drain")
        ended = (await served.client.post(f"/v1/hosts/h-1/{action}")).json()
        assert (ended["admission"], ended["drain"]) == (admission, None)


# --- dead letters ---


def letter(number: int, **fields: object) -> DeadLetter:
    made = {
        "dead_letter_id": f"{number:040x}",
        "reason": "invalid_json",
        "detail": "It is not JSON.",
        "queue": JOBS_QUEUE.name,
        "routing_key": "job.submit",
        "headers": {"a": "b"},
        "message_id": "mine",
        "payload": b"{",
        **fields,
    }
    payload = made["payload"]
    assert isinstance(payload, bytes)
    return DeadLetter.model_validate({"payload_bytes": len(payload), **made})


async def test_dead_letters_are_listed_newest_first_filtered_and_in_pages(
    served: ServedGateway,
) -> None:
    for number in range(5):
        await served.store.dead_letters.add([letter(number)])
    other = letter(9, reason="delivery_limit", queue=REPORTS_QUEUE.name, routing_key="h-1")
    await served.store.dead_letters.add([other])
    seen: list[str] = []
    path: str | None = f"/v1/dead-letters?limit=2&queue={JOBS_QUEUE.name}&reason=invalid_json"
    while path:
        answer = await served.client.get(path)
        assert answer.status_code == 200
        for one in answer.json()["dead_letters"]:
            assert "payload" not in one
            assert (one["payload_bytes"], one["message_id"]) == (1, "mine")
            seen.append(one["dead_letter_id"])
        path = answer.links["next"]["url"] if "next" in answer.links else None
    assert seen == [f"{number:040x}" for number in (4, 3, 2, 1, 0)]
    chosen = (await served.client.get("/v1/dead-letters?reason=delivery_limit")).json()
    assert [one["dead_letter_id"] for one in chosen["dead_letters"]] == [other.dead_letter_id]
    for wrong in ("reason=$ne", "queue=a/b", "queue=", "reason=a&reason=b", "state=x", "limit=0"):
        refused = await served.client.get(f"/v1/dead-letters?{wrong}")
        assert refused.status_code == 422, wrong
        assert problem(refused)["errors"][0]["parameter"]


async def test_a_dead_letter_is_read_and_deleted(served: ServedGateway) -> None:
    await served.store.dead_letters.add([letter(1), letter(2, payload=b"\xff")])
    text = (await served.client.get(f"/v1/dead-letters/{1:040x}")).json()
    assert (text["payload"], text["payload_encoding"]) == ("{", "utf-8")
    assert text["headers"] == {"a": "b"}
    assert text["links"]["replay"] == f"/v1/dead-letters/{1:040x}/replay"
    binary = (await served.client.get(f"/v1/dead-letters/{2:040x}")).json()
    assert (binary["payload"], binary["payload_encoding"]) == ("/w==", "base64")
    assert (await served.client.delete(f"/v1/dead-letters/{1:040x}")).status_code == 204
    for method in ("GET", "DELETE"):
        answer = await served.client.request(method, f"/v1/dead-letters/{1:040x}")
        assert answer.status_code == 404
        assert problem(answer)["code"] == "not_found"


async def test_a_replay_publishes_what_came_and_says_which_replay_it_is(
    served: ServedGateway,
) -> None:
    body = json.dumps({"job_id": "j-1", "operation_type": "TERMINATE"}).encode()
    dead = letter(1, payload=body, message_type="somebodys.type", from_modelyard=True)
    dead = dead.model_copy(update={"message_priority": 7})
    await served.store.dead_letters.add([dead])
    for times in (1, 2):
        answer = await served.client.post(f"/v1/dead-letters/{dead.dead_letter_id}/replay")
        assert answer.status_code == 202
        assert answer.json()["replays"] == times
        assert answer.json()["replayed_at"] is not None
        [message] = await served.messages(1)
        assert message.body == body
        assert message.type == "somebodys.type"
        assert message.priority == answer.json()["message_priority"] == 7
        assert message.headers[REPLAY_HEADER] == f"{dead.dead_letter_id}:{times}"
        assert message.message_id != "mine"


async def test_what_a_client_called_its_message_is_not_said_again_in_our_name(
    served: ServedGateway,
) -> None:
    named = letter(1, message_type=CANCEL_TYPE, sender="web")
    await served.store.dead_letters.add([named])
    answer = await served.client.post(f"/v1/dead-letters/{named.dead_letter_id}/replay")
    assert answer.status_code == 202
    [message] = await served.messages(1)
    assert message.type is None


async def test_what_only_says_that_a_gateway_sent_it_is_not_replayed(served: ServedGateway) -> None:
    """A publisher has said so, or a version that did not note its senders has recorded it."""
    forged = letter(1, payload=b'{"requests": []}', message_type=SUBMISSION_TYPE)
    await served.store.dead_letters.add([forged])
    answer = await served.client.post(f"/v1/dead-letters/{forged.dead_letter_id}/replay")
    assert answer.status_code == 409
    assert "not proven" in problem(answer)["detail"]


async def test_a_letter_that_was_cut_is_not_replayed(served: ServedGateway) -> None:
    await served.store.dead_letters.add([letter(1, payload_bytes=99), letter(2, queue="other")])
    for number in (1, 2):
        answer = await served.client.post(f"/v1/dead-letters/{number:040x}/replay")
        assert answer.status_code == 409
        assert problem(answer)["code"] == "not_replayable"
        kept = await served.store.dead_letters.get(f"{number:040x}")
        assert kept is not None
        assert kept.replays == 0


async def test_a_command_is_not_replayed_and_it_is_said_who_gives_it_again(
    served: ServedGateway,
) -> None:
    command = letter(1, queue=host_queue("h-9").name, routing_key="h-9")
    await served.store.dead_letters.add([command])
    answer = await served.client.post(f"/v1/dead-letters/{command.dead_letter_id}/replay")
    assert answer.status_code == 409
    refused = problem(answer)
    assert refused["code"] == "not_replayable"
    assert "publishes commands again" in refused["detail"]


async def test_reports_are_never_published_by_a_gateway(served: ServedGateway) -> None:
    lost = letter(1, queue=REPORTS_QUEUE.name, routing_key="h-9")
    await served.store.dead_letters.add([lost])
    answer = await served.client.post(f"/v1/dead-letters/{lost.dead_letter_id}/replay")
    assert answer.status_code == 409
    refused = problem(answer)
    assert refused["code"] == "not_replayable"
    assert "asks workers for lost reports" in refused["detail"]


async def test_a_replay_to_a_queue_that_is_gone_is_503_and_concludes_nothing_else(
    served: ServedGateway, rabbitmq: RabbitMQ, amqp_url: str
) -> None:
    await served.store.dead_letters.add([letter(1)])
    vhost = amqp_url.rpartition("/")[2]
    await asyncio.to_thread(rabbitmq.ctl, "delete_queue", "--vhost", vhost, JOBS_QUEUE.name)
    answer = await served.client.post(f"/v1/dead-letters/{1:040x}/replay")
    assert answer.status_code == 503
    assert problem(answer)["code"] == "unavailable"
    assert (await served.client.get("/readyz")).json()["status"] == "ready"


async def test_a_replay_needs_both_stores_and_holds_nobody_up(
    served: ServedGateway, rabbitmq: RabbitMQ, mongodb: MongoDB
) -> None:
    await served.store.dead_letters.add([letter(1)])
    path = f"/v1/dead-letters/{1:040x}/replay"
    with frozen(rabbitmq):
        answers, seconds = await _timed(served, path)
    assert answers[0].status_code == 503
    assert seconds[0] < 2
    with frozen(mongodb):
        answers, seconds = await _timed(served, path)
    assert answers[0].status_code == 503
    assert seconds[0] < 2
