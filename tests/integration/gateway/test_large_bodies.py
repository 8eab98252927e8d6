"""Large bodies at the gateway's door: they are answered, and nobody else waits for them."""

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest

from gateway.availability import Condition
from gateway.submission import body_budget
from modelyard.contract.states import OperationState
from tests.support.gateway import ServedGateway, fill_catalog, problem, serving
from tests.support.large_bodies import FILLS, MIB, feeling, infer, many_names
from tests.support.waiting import eventually

JSON = {"Content-Type": "application/json"}
SMALL = {"job_id": "small", "operation_type": "TERMINATE"}


@pytest.fixture
async def served(mongo_url: str, amqp_url: str) -> AsyncIterator[ServedGateway]:
    async with serving(mongo_url, amqp_url) as served:
        await fill_catalog(served.store)
        yield served


def batch(name: str, fill: str) -> bytes:
    """Return a batch of 8 MiB."""
    item = infer(name, FILLS[fill](MIB - 4_096))
    return b"[" + b",".join([item] * 8) + b"]"


async def post(served: ServedGateway, path: str, body: bytes) -> httpx2.Response:
    return await served.client.post(path, content=body, headers=JSON, timeout=100)


@pytest.mark.alone
async def test_the_worst_bodies_at_once_stop_neither_the_loop_nor_others(
    served: ServedGateway,
) -> None:
    fills = [fill for fill in FILLS if fill != "rows"]
    bodies = [
        ("/v1/jobs", infer(f"j-{number}", FILLS[[*fills, *fills][number]](MIB - 256)))
        for number in range(10)
    ]
    bodies += [
        ("/v1/jobs/batch", batch(f"b-{number}", [*fills, *fills][number])) for number in range(8)
    ]
    await served.submit(SMALL)
    async with feeling() as lags:
        large = [asyncio.create_task(post(served, *body)) for body in bodies]
        small: list[httpx2.Response] = []
        while not all(task.done() for task in large):
            small.append(await served.submit(SMALL))
            assert served.gateway._store_up.condition is Condition.UP
            assert served.gateway._broker_up.condition is Condition.UP
    answers = [task.result() for task in large]
    assert [answer.status_code for answer in answers] == [202] * 10 + [200] * 8
    assert all(
        item["status"] == 202 for answer in answers[10:] for item in answer.json()["results"]
    )
    assert {answer.status_code for answer in small} == {202}
    assert len(small) > 20
    # Parsed on the loop or in threads, one of them takes a second; a shared machine takes 0.1 s.
    assert lags.worst < 0.5
    assert lags.quantile(0.99) < 0.1
    assert served.gateway.reader.budget.used == 0


@pytest.mark.parametrize("program", ["/nowhere/python", "/bin/false"])
async def test_a_large_body_that_nobody_can_read_now_is_to_be_sent_again(
    served: ServedGateway, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    body = infer("j-1", FILLS["text"](MIB // 4))
    with monkeypatch.context() as patch:
        patch.setattr("modelyard.process.body_process.sys.executable", program)
        refused = await post(served, "/v1/jobs", body)
    assert refused.status_code == 503
    assert problem(refused)["code"] == "unavailable"
    assert "Retry-After" in refused.headers
    assert (await post(served, "/v1/jobs", body)).status_code == 202


@pytest.mark.alone
async def test_an_object_of_many_names_is_refused_in_a_small_answer(served: ServedGateway) -> None:
    body = many_names(600_000)
    async with feeling() as lags:
        answer = await post(served, "/v1/jobs/batch", body)
    assert answer.status_code == 400
    assert problem(answer)["code"] == "invalid_json"
    assert "600000 names" in problem(answer)["detail"]
    assert len(answer.content) < 2_048
    assert lags.worst < 0.5


async def test_what_was_large_is_the_same_in_the_record_and_in_the_message(
    served: ServedGateway,
) -> None:
    odd = [1e22, -0.0, 10**30, "ü\u2028\x7f", {"$ne": ""}, None, "x" * 50_000]
    operation_id = await served.accepted(
        job_id="j", operation_type="INFER", input=odd, metadata={"a": "é"}, priority=3
    )
    [submission] = await served.published(1)
    [submitted] = submission.requests
    record = await served.store.operation_queries.with_input(operation_id)
    assert record is not None
    assert submitted.operation_id == operation_id
    assert submitted.request.input == odd
    assert submitted.request.metadata == {"a": "é"}
    assert submitted.request.priority == record.priority == 3
    assert record.input_json == submitted.request.input_json()
    assert record.payload_hash == submitted.request.payload_hash()


async def test_a_large_request_is_retried_as_it_was(served: ServedGateway) -> None:
    operation_id = await served.accepted(
        job_id="j", operation_type="INFER", input={"b": "x" * 50_000, "a": 1}
    )
    await served.finish(operation_id, OperationState.FAILED)
    answer = await served.client.post(f"/v1/operations/{operation_id}/retry")
    assert answer.status_code == 202, answer.text
    first = await served.store.operation_queries.with_input(operation_id)
    again = await served.store.operation_queries.with_input(answer.json()["operation_id"])
    assert first is not None
    assert again is not None
    assert again.input_json == first.input_json
    assert again.retry_of == operation_id


async def test_what_is_wrong_in_a_large_batch_is_told_for_each_request(
    served: ServedGateway,
) -> None:
    good = infer("j-1", FILLS["text"](100_000))
    wrong = b'{"job_id":"j-2","operation_type":"INFER","input":"x","priority":999}'
    answer = await post(served, "/v1/jobs/batch", b'{"requests":[' + good + b"," + wrong + b"]}")
    first, second = answer.json()["results"]
    assert first["status"] == 202
    assert (second["status"], second["job_id"]) == (422, "j-2")
    assert second["problem"]["errors"][0]["pointer"] == "/requests/1/priority"


async def test_a_body_beyond_the_budget_is_asked_to_come_back(
    served: ServedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_budget, "WAIT_S", 0.05)
    budget = served.gateway.reader.budget
    body = infer("j-1", FILLS["text"](MIB - 256))
    with budget.share() as all_but_little:
        await all_but_little.grow_to(body_budget.BUDGET_BYTES - 1_000)
        refused = await post(served, "/v1/jobs", body)
        assert (await served.submit(SMALL)).status_code == 202
    assert refused.status_code == 503
    assert problem(refused)["code"] == "unavailable"
    assert refused.headers["Retry-After"]
    assert (await post(served, "/v1/jobs", body)).status_code == 202


async def test_a_client_that_goes_away_gives_its_share_back(served: ServedGateway) -> None:
    budget = served.gateway.reader.budget
    host, port = served.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = "POST /v1/jobs/batch HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {8 * MIB}\r\n\r\n[".encode())

    async def used(size: int) -> bool:
        return budget.used == size

    await eventually(lambda: used(8 * MIB), what="the share")
    writer.close()
    await eventually(lambda: used(0), what="the end of the share")
