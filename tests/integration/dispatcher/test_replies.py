"""Replies: the end of an operation is told where its publisher waits for it, and nowhere else."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage

from modelyard.contract.errors import ErrorCode
from modelyard.contract.ids import operation_id_for_key
from modelyard.contract.message_types import EVENT_TYPE
from modelyard.contract.messages import MAX_EVENT_RESULT_BYTES
from modelyard.contract.states import OperationState, Verb
from modelyard.contract.topology import JOBS, SUBMIT_KEY
from tests.support.dispatcher.deployed import loaded
from tests.support.dispatcher.driver import DispatcherDriver
from tests.support.dispatcher.scripted_host import scripted_host

DIRECT = "amq.rabbitmq.reply-to"
TERMINATE = {"job_id": "j", "operation_type": "TERMINATE"}


class Caller:
    """A client that waits for its answers in a queue."""

    def __init__(self, channel: aio_pika.abc.AbstractChannel) -> None:
        self._channel = channel
        self._heard: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()

    async def listen(self, name: str | None) -> str:
        """Consume a queue, which RabbitMQ names if the test does not; return its name."""
        if name == DIRECT:
            queue = await self._channel.get_queue(DIRECT, ensure=False)
            await queue.consume(self._heard.put, no_ack=True)
            return DIRECT
        made = await self._channel.declare_queue(name, exclusive=True)
        await made.consume(self._heard.put, no_ack=True)
        return made.name

    async def ask(self, body: object, **properties: Any) -> None:
        """Publish a request."""
        exchange = await self._channel.get_exchange(JOBS.name, ensure=False)
        message = aio_pika.Message(json.dumps(body).encode(), **properties)
        await exchange.publish(message, SUBMIT_KEY)

    async def answer(self) -> tuple[AbstractIncomingMessage, dict[str, Any]]:
        """Return the next answer, and the event in it."""
        async with asyncio.timeout(20):
            message = await self._heard.get()
        return message, json.loads(message.body)

    @property
    def has_more(self) -> bool:
        """True if an answer has come that nobody has asked for."""
        return not self._heard.empty()


@pytest.fixture
async def caller(amqp_url: str) -> AsyncIterator[Caller]:
    async with await aio_pika.connect(amqp_url) as connection:
        yield Caller(await connection.channel(publisher_confirms=False))


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize("name", [DIRECT, None, "guest.answers"])
async def test_the_end_is_told_where_the_publisher_waits(caller: Caller, name: str | None) -> None:
    queue = await caller.listen(name)
    await caller.ask(
        TERMINATE, message_id="k", reply_to=queue, correlation_id="c-1", user_id="guest"
    )
    message, event = await caller.answer()
    assert (message.correlation_id, message.type) == ("c-1", EVENT_TYPE)
    assert message.content_type == "application/json"
    assert event["type"] == "operation.succeeded"
    assert event["operation_id"] == operation_id_for_key("k")
    assert event["finished_at"]
    assert "reply" not in event


@pytest.mark.usefixtures("driver")
async def test_each_request_of_a_list_is_told_of(caller: Caller) -> None:
    queue = await caller.listen(None)
    bad = {"job_id": "j", "operation_type": "EXPLODE"}
    await caller.ask([TERMINATE, bad], message_id="k", reply_to=queue, correlation_id="c")
    told = [await caller.answer() for _ in range(2)]
    assert {one.correlation_id for one, _ in told} == {"c"}
    assert {event["operation_id"]: event["state"] for _, event in told} == {
        operation_id_for_key("k/0"): "SUCCEEDED",
        operation_id_for_key("k/1"): "REJECTED",
    }


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ({"a": [1.5, None, {"b": None}], "c": "é"}, True),
        ("x" * (MAX_EVENT_RESULT_BYTES - 2), True),
        ("x" * (MAX_EVENT_RESULT_BYTES - 1), False),
        ("é" * (MAX_EVENT_RESULT_BYTES // 2), False),
    ],
    ids=["nested", "largest", "larger", "larger in UTF-8"],
)
async def test_the_answer_to_an_inference_has_its_result_if_it_is_small(
    driver: DispatcherDriver, caller: Caller, result: object, *, told: bool
) -> None:
    queue = await caller.listen(None)
    async with scripted_host(driver.broker, "h1") as host:
        await loaded(driver, host)
        request = {"job_id": "job-1", "operation_type": "INFER", "input": 1}
        await caller.ask(request, message_id="k", reply_to=queue)
        text = json.dumps(result, ensure_ascii=False, separators=(",", ":"))
        await host.finish(await host.command(), result_json=text)
        message, event = await caller.answer()
    assert message.correlation_id is None
    assert event["state"] == "SUCCEEDED"
    assert event["result_bytes"] == len(text.encode())
    assert event.get("result") == (result if told else None)
    assert ("result" in event) is told
    assert not caller.has_more
    (kept,) = [
        one
        for one in await driver.store.events.of_operation(operation_id_for_key("k"))
        if one.state is OperationState.SUCCEEDED
    ]
    assert kept.result is None


@pytest.mark.parametrize(
    "queue",
    [
        "modelyard.jobs.v1",
        "modelyard.host.h1.v1",
        "modelyard.control.h1.v1",
        "modelyard.reports.v1",
        "modelyard.dead.v1",
        "billing.events",
        "guestbook",
        "guest.eu.answers",
        "guest",
    ],
)
async def test_nobody_has_us_write_into_a_queue_that_is_not_his(
    driver: DispatcherDriver, caller: Caller, queue: str
) -> None:
    await caller.ask(TERMINATE, message_id="k", reply_to=queue, user_id="guest")
    rejected = await driver.operation(operation_id_for_key("k"), OperationState.REJECTED)
    assert rejected.error is not None
    assert rejected.error.code is ErrorCode.INVALID_REQUEST
    assert repr(queue) in rejected.error.message
    assert rejected.reply is None


async def test_a_name_of_ones_own_has_to_be_proven(
    driver: DispatcherDriver, caller: Caller
) -> None:
    queue = await caller.listen("guest.answers")
    await caller.ask(TERMINATE, message_id="k", reply_to=queue)
    await driver.operation(operation_id_for_key("k"), OperationState.REJECTED)


async def test_a_reply_that_nobody_takes_holds_up_nothing(
    driver: DispatcherDriver, caller: Caller
) -> None:
    for number in range(20):
        await caller.ask(TERMINATE, message_id=f"lost-{number}", reply_to=f"amq.gen-{number}")
    queue = await caller.listen(None)
    await caller.ask(TERMINATE, message_id="k", reply_to=queue)
    _, event = await caller.answer()
    assert event["operation_id"] == operation_id_for_key("k")
    assert await driver.submit(Verb.TERMINATE)


@pytest.mark.usefixtures("driver")
async def test_a_publisher_that_lost_its_queue_asks_again_with_another(caller: Caller) -> None:
    first = await caller.listen(None)
    await caller.ask(TERMINATE, message_id="k", reply_to=first, correlation_id="c-1")
    message, event = await caller.answer()
    assert (message.routing_key, message.correlation_id) == (first, "c-1")
    second = await caller.listen(None)
    await caller.ask(TERMINATE, message_id="k", reply_to=second, correlation_id="c-2")
    message, again = await caller.answer()
    assert (message.routing_key, message.correlation_id) == (second, "c-2")
    facts = ("event_id", "type", "operation_id", "state", "finished_at")
    assert [again[name] for name in facts] == [event[name] for name in facts]
    assert not caller.has_more


async def test_a_key_whose_first_message_waited_for_nothing_is_answered(
    driver: DispatcherDriver, caller: Caller
) -> None:
    await caller.ask(TERMINATE, message_id="k")
    await driver.operation(operation_id_for_key("k"), OperationState.SUCCEEDED)
    queue = await caller.listen(None)
    await caller.ask(TERMINATE, message_id="k", reply_to=queue, correlation_id="c")
    message, event = await caller.answer()
    assert message.correlation_id == "c"
    assert event["state"] == "SUCCEEDED"


async def test_an_end_that_is_still_to_come_is_told_at_the_newest_queue_alone(
    driver: DispatcherDriver, caller: Caller
) -> None:
    first, second = await caller.listen(None), await caller.listen(None)
    request = {"job_id": "job-1", "operation_type": "INFER", "input": 1}
    async with scripted_host(driver.broker, "h1") as host:
        await loaded(driver, host)
        await caller.ask(request, message_id="k", reply_to=first, correlation_id="c-1")
        command = await host.command()
        await caller.ask(request, message_id="k", reply_to=second, correlation_id="c-2")
        await driver.operation(
            operation_id_for_key("k"),
            where=lambda one: one.reply is not None and one.reply.queue == second,
        )
        await host.finish(command, result_json="[1.5]")
        message, event = await caller.answer()
        assert (message.routing_key, message.correlation_id) == (second, "c-2")
        assert (event["state"], event["result"]) == ("SUCCEEDED", [1.5])
        # Also long after its end, with its result; and nothing else has been told of it.
        await caller.ask(request, message_id="k", reply_to=first, correlation_id="c-3")
        message, again = await caller.answer()
    assert (message.routing_key, message.correlation_id) == (first, "c-3")
    assert (again["event_id"], again["result"]) == (event["event_id"], [1.5])
    assert not caller.has_more


async def test_a_key_of_another_payload_is_answered_at_once(
    driver: DispatcherDriver, caller: Caller
) -> None:
    queue = await caller.listen(None)
    other = TERMINATE | {"metadata": {"another": "request"}}
    await caller.ask(TERMINATE, message_id="k", reply_to=queue, correlation_id="c-1")
    _, event = await caller.answer()
    assert event["state"] == "SUCCEEDED"
    await caller.ask(other, message_id="k", reply_to=queue, correlation_id="c-2")
    message, event = await caller.answer()
    assert (message.correlation_id, message.type) == ("c-2", EVENT_TYPE)
    assert event["type"] == "operation.payload_mismatch"
    assert event["operation_id"] == operation_id_for_key("k")
    assert event["error"]["code"] == ErrorCode.IDEMPOTENCY_KEY_REUSED
    assert "state" not in event
    kept = await driver.operation(operation_id_for_key("k"), OperationState.SUCCEEDED)
    assert kept.payload_mismatch
