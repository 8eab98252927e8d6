"""What the rest of Modelyard relies on from a broker, seen on a real RabbitMQ."""

import asyncio

import aio_pika
import pytest

from deploy.local.rabbitmq import RabbitMQ
from modelyard.broker import (
    Broker,
    Delivery,
    Subscription,
    TopologyMismatchError,
    consume_forever,
)
from modelyard.contract.errors import BrokerUnavailableError
from modelyard.contract.topology import (
    DEAD_QUEUE,
    EVENTS,
    HEARTBEATS_QUEUE,
    HOSTS,
    JOBS,
    JOBS_QUEUE,
    REPORTS_QUEUE,
    SUBMIT_KEY,
    Queue,
    host_queue,
)
from tests.support.waiting import eventually

QUEUES = [JOBS_QUEUE, REPORTS_QUEUE, HEARTBEATS_QUEUE, DEAD_QUEUE]


async def received(broker: Broker, queue: Queue, count: int) -> list[bytes]:
    bodies: list[bytes] = []
    async with asyncio.timeout(10), broker.subscribe(queue, prefetch=100) as subscription:
        async for batch in subscription.batches(max_items=10):
            bodies += [delivery.body for delivery in batch]
            await subscription.ack(batch)
            if len(bodies) >= count:
                return bodies
    raise AssertionError


async def test_the_whole_topology_can_be_declared_again_and_again(broker: Broker) -> None:
    for _ in range(2):
        await broker.declare([*QUEUES, host_queue("h1")])


async def test_a_queue_with_other_arguments_is_named_with_both_values(broker: Broker) -> None:
    await broker.declare([Queue("q", JOBS, "k", {"x-queue-type": "quorum", "x-delivery-limit": 5})])
    other = Queue("q", JOBS, "k", {"x-queue-type": "quorum", "x-delivery-limit": 6})
    with pytest.raises(TopologyMismatchError, match=r"x-delivery-limit.*'q'.*6.*5"):
        await broker.declare([other])


async def test_messages_come_in_order_and_in_batches(broker: Broker) -> None:
    await broker.declare(QUEUES)
    sent = [str(number).encode() for number in range(50)]
    for body in sent:
        await broker.publish(JOBS, SUBMIT_KEY, body)
    assert await received(broker, JOBS_QUEUE, 50) == sent


async def test_what_was_not_settled_comes_again(broker: Broker) -> None:
    await broker.declare(QUEUES)
    await broker.publish(JOBS, SUBMIT_KEY, b"once", message_id="key")
    async with broker.subscribe(JOBS_QUEUE, prefetch=1) as subscription:
        async for batch in subscription.batches(max_items=1):
            assert (batch[0].redelivered, batch[0].message_id) == (False, "key")
            break
    async with broker.subscribe(JOBS_QUEUE, prefetch=1) as subscription:
        async for batch in subscription.batches(max_items=1):
            assert batch[0].redelivered
            break


async def test_a_message_that_no_queue_takes_is_an_error(broker: Broker) -> None:
    await broker.declare(QUEUES)
    with pytest.raises(BrokerUnavailableError):
        await broker.publish(HOSTS, "nobody", b"{}")
    await broker.publish(EVENTS, "operation.queued", b"{}", mandatory=False)


async def test_publishing_goes_on_after_an_error(broker: Broker) -> None:
    await broker.declare(QUEUES)
    with pytest.raises(BrokerUnavailableError):
        await broker.publish(HOSTS, "nobody", b"{}")
    await broker.publish(JOBS, SUBMIT_KEY, b"{}")
    assert await received(broker, JOBS_QUEUE, 1) == [b"{}"]


async def test_only_one_worker_can_hold_a_hosts_queue(broker: Broker) -> None:
    queue = host_queue("h1")
    await broker.declare([queue])
    async with broker.subscribe(queue, prefetch=1, exclusive=True):
        with pytest.raises(BrokerUnavailableError, match="exclusive"):
            async with broker.subscribe(queue, prefetch=1, exclusive=True):
                pass


async def test_a_deleted_queue_ends_the_subscription(broker: Broker, amqp_url: str) -> None:
    await broker.declare(QUEUES)
    async with broker.subscribe(JOBS_QUEUE, prefetch=1) as subscription:
        connection = await aio_pika.connect(amqp_url)
        async with connection:
            channel = await connection.channel()
            await channel.queue_delete(JOBS_QUEUE.name)
        batches = subscription.batches(max_items=1)
        with pytest.raises(BrokerUnavailableError, match="cancelled"):
            await asyncio.wait_for(anext(batches), timeout=10)


async def test_a_broker_that_is_not_there_is_said_at_once() -> None:
    nowhere = Broker("amqp://guest:guest@127.0.0.1:1/", name="test")
    async with asyncio.timeout(3):
        with pytest.raises(BrokerUnavailableError):
            await nowhere.publish(JOBS, SUBMIT_KEY, b"{}")
        with pytest.raises(BrokerUnavailableError):
            await nowhere.declare(QUEUES)
        with pytest.raises(BrokerUnavailableError):
            await nowhere.ping()


async def test_consumers_come_back_after_the_broker_closed_every_connection(
    broker: Broker, rabbitmq: RabbitMQ
) -> None:
    await broker.declare(QUEUES)
    seen: list[bytes] = []

    async def handle(subscription: Subscription, batch: list[Delivery]) -> None:
        seen.extend(one.body for one in batch)
        await subscription.ack(batch)

    consuming = asyncio.create_task(
        consume_forever(
            lambda: broker.subscribe(JOBS_QUEUE, prefetch=1),
            handle,
            name="test",
            max_items=1,
        )
    )
    await broker.publish(JOBS, SUBMIT_KEY, b"before")
    await eventually(lambda: _is(seen, [b"before"]))
    await asyncio.to_thread(
        rabbitmq.ctl,
        "close_all_connections",
        "test",
    )

    async def published() -> bool:
        try:
            await broker.publish(JOBS, SUBMIT_KEY, b"after")
        except BrokerUnavailableError:
            return False
        return True

    await eventually(published)
    await eventually(lambda: _is(seen, [b"before", b"after"]))
    consuming.cancel()


async def _is(seen: list[bytes], wanted: list[bytes]) -> bool:
    return seen == wanted


async def test_publishing_to_a_frozen_broker_ends_at_its_deadline(
    broker: Broker, rabbitmq: RabbitMQ
) -> None:
    await broker.declare(QUEUES)
    await broker.publish(JOBS, SUBMIT_KEY, b"{}")
    rabbitmq.pause()
    try:
        async with asyncio.timeout(3):
            with pytest.raises(BrokerUnavailableError):
                await broker.publish(JOBS, SUBMIT_KEY, b"{}", timeout_s=0.5)
    finally:
        rabbitmq.resume()
