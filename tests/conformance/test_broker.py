"""What the rest of Modelyard relies on from a broker, seen on a real RabbitMQ.

And on the one in memory, which the state machine runs on. Tests that take `real_broker` are about
RabbitMQ's client library and wires, of which the one in memory has none.
"""

import asyncio
import itertools
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol

import aio_pika
import aiormq
import pytest
from pamqp import decode
from pamqp.commands import Basic
from structlog.testing import capture_logs

from deploy.local.rabbitmq import RabbitMQ
from modelyard.broker import (
    Broker,
    Delivery,
    DirectReply,
    MessageProperties,
    Subscription,
    TopologyMismatchError,
    consume_forever,
    send_to_dead_letters,
)
from modelyard.broker.connection_loss import losses
from modelyard.contract.errors import BrokerUnavailableError, ErrorCode, ErrorInfo
from modelyard.contract.topology import (
    DEAD,
    DEAD_QUEUE,
    EVENTS,
    EXCHANGES,
    HEARTBEATS_QUEUE,
    HOSTS,
    JOBS,
    JOBS_QUEUE,
    REPORTS_QUEUE,
    SUBMIT_KEY,
    Queue,
    host_queue,
)
from tests.fakes.broker import MemoryBroker, MemoryRabbit
from tests.support.servers.raw_properties import RawProperties, raw_headers
from tests.support.waiting import eventually

QUEUES = [JOBS_QUEUE, REPORTS_QUEUE, HEARTBEATS_QUEUE, DEAD_QUEUE]


class Server(Protocol):
    """What tests do to a server behind the back of a broker."""

    def broker(self) -> Broker: ...

    async def delete(self, queue: Queue) -> None: ...

    async def close_connections(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class RealServer:
    """A virtual host of a RabbitMQ."""

    def __init__(self, rabbitmq: RabbitMQ, url: str) -> None:
        self._rabbitmq = rabbitmq
        self._url = url

    def broker(self) -> Broker:
        return Broker(self._url, name="test")

    async def delete(self, queue: Queue) -> None:
        connection = await aio_pika.connect(self._url)
        async with connection:
            channel = await connection.channel()
            await channel.queue_delete(queue.name)

    async def close_connections(self) -> None:
        # Without a virtual host it is the default one, and no connection of ours is closed.
        vhost = self._url.rpartition("/")[2]
        await asyncio.to_thread(
            self._rabbitmq.ctl, "close_all_connections", "--vhost", vhost, "test"
        )

    def pause(self) -> None:
        self._rabbitmq.pause()

    def resume(self) -> None:
        self._rabbitmq.resume()


class MemoryServer:
    """A RabbitMQ in memory."""

    def __init__(self) -> None:
        self._rabbit = MemoryRabbit()
        self._brokers: list[MemoryBroker] = []

    def broker(self) -> Broker:
        made = MemoryBroker(self._rabbit, name="test")
        self._brokers.append(made)
        return made

    async def delete(self, queue: Queue) -> None:
        self._rabbit.delete(queue.name)

    async def close_connections(self) -> None:
        self._rabbit.close_connections()

    def pause(self) -> None:
        for one in self._brokers:
            one.link.silent = True

    def resume(self) -> None:
        for one in self._brokers:
            one.link.silent = False


@pytest.fixture(params=[pytest.param("rabbitmq", marks=pytest.mark.server), "memory"])
def server(request: pytest.FixtureRequest) -> Server:
    """Give the test a server of its own."""
    if request.param == "memory":
        return MemoryServer()
    return RealServer(request.getfixturevalue("rabbitmq"), request.getfixturevalue("amqp_url"))


@pytest.fixture
async def broker(server: Server) -> AsyncIterator[Broker]:
    """Give the test a broker of that server."""
    made = server.broker()
    yield made
    await made.close()


@pytest.fixture
async def real_broker(amqp_url: str) -> AsyncIterator[Broker]:
    """Give the test a broker of the real server."""
    made = Broker(amqp_url, name="test")
    yield made
    await made.close()


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


async def test_settling_twice_is_settling_once(broker: Broker) -> None:
    await broker.declare(QUEUES)
    await broker.publish(JOBS, SUBMIT_KEY, b"once")
    async with broker.subscribe(JOBS_QUEUE, prefetch=1) as subscription:
        batch = await anext(subscription.batches(max_items=1))
        await subscription.ack(batch)
        await subscription.ack(batch)
        assert not subscription.is_lost


@pytest.mark.parametrize(
    "settled",
    [[[0, 1, 2]], [[2, 0, 1]], [[1, 2]], [[4], [0, 1]], [[1, 3], [0, 1, 2], [5]], [[0], [1, 2, 4]]],
    ids=str,
)
async def test_of_what_is_in_hand_only_what_was_settled_does_not_come_again(
    broker: Broker, settled: list[list[int]]
) -> None:
    await broker.declare(QUEUES)
    for number in range(6):
        await broker.publish(JOBS, SUBMIT_KEY, str(number).encode())
    async with asyncio.timeout(10), broker.subscribe(JOBS_QUEUE, prefetch=6) as subscription:
        batches = subscription.batches(max_items=6)
        in_hand: list[Delivery] = []
        while len(in_hand) < 6:
            in_hand += await anext(batches)
        for some in settled:
            await subscription.ack([in_hand[number] for number in some])
        gone = {number for some in settled for number in some}
        assert [number for number, one in enumerate(in_hand) if one.settled] == sorted(gone)
        assert subscription._held == sum(one.held_bytes for one in in_hand if not one.settled)
    left = [str(number).encode() for number in range(6) if number not in gone]
    assert await received(broker, JOBS_QUEUE, len(left)) == left


async def test_a_message_that_no_queue_takes_is_an_error(broker: Broker) -> None:
    await broker.declare(QUEUES, exchanges=EXCHANGES)
    with pytest.raises(BrokerUnavailableError):
        await broker.publish(HOSTS, "nobody", b"{}")
    await broker.publish(EVENTS, "operation.queued", b"{}", mandatory=False)


async def test_publishing_goes_on_after_an_error(broker: Broker) -> None:
    await broker.declare(QUEUES, exchanges=EXCHANGES)
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


async def test_a_deleted_queue_ends_the_subscription(broker: Broker, server: Server) -> None:
    await broker.declare(QUEUES)
    async with broker.subscribe(JOBS_QUEUE, prefetch=1) as subscription:
        await server.delete(JOBS_QUEUE)
        batches = subscription.batches(max_items=1)
        with pytest.raises(BrokerUnavailableError, match="cancelled"):
            await asyncio.wait_for(anext(batches), timeout=10)


@pytest.fixture(params=["rabbitmq", "memory"])
async def nowhere(request: pytest.FixtureRequest) -> Broker:
    """Return a broker whose server is not there."""
    if request.param == "rabbitmq":
        return Broker("amqp://guest:guest@127.0.0.1:1/", name="test")
    made = MemoryBroker(MemoryRabbit(), name="test")
    made.link.up = False
    return made


async def test_a_broker_that_is_not_there_is_said_at_once(nowhere: Broker) -> None:
    async with asyncio.timeout(3):
        with pytest.raises(BrokerUnavailableError):
            await nowhere.publish(JOBS, SUBMIT_KEY, b"{}")
        with pytest.raises(BrokerUnavailableError):
            await nowhere.declare(QUEUES)
        with pytest.raises(BrokerUnavailableError):
            await nowhere.ping()


async def test_consumers_come_back_after_the_broker_closed_every_connection(
    broker: Broker, server: Server
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
    await server.close_connections()

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
    broker: Broker, server: Server
) -> None:
    await broker.declare(QUEUES)
    await broker.publish(JOBS, SUBMIT_KEY, b"{}")
    server.pause()
    try:
        async with asyncio.timeout(3):
            with pytest.raises(BrokerUnavailableError):
                await broker.publish(JOBS, SUBMIT_KEY, b"{}", timeout_s=0.5)
    finally:
        server.resume()


def _nested(depth: int) -> bytes:
    inner = b""
    for _ in range(depth):
        inner = b"A" + struct.pack(">I", len(inner)) + inner
    return inner


ODD = {
    "timestamp in microseconds": RawProperties(0x0040, struct.pack(">Q", 1_764_000_000_000_000)),
    "timestamp 2^63": RawProperties(0x0040, struct.pack(">Q", 1 << 63)),
    "timestamp 2^64 - 1": RawProperties(0x0040, b"\xff" * 8),
    "message_id that is not UTF-8": RawProperties(0x0080, b"\x02\xff\xfe"),
    "type that is not UTF-8": RawProperties(0x0020, b"\x02\xff\xfe"),
    "header key that is not UTF-8": raw_headers(b"\x02\xff\xfet\x01"),
    "header value that is not UTF-8": raw_headers(b"\x01kS\x00\x00\x00\x02\xff\xfe"),
    "header timestamp too large": raw_headers(b"\x01kT" + b"\xff" * 8),
    "header table in a table": raw_headers(b"\x01kF\x00\x00\x00\x05\x02\xff\xfet\x01"),
    "headers nested 5,000 deep": raw_headers(b"\x01k" + _nested(5_000)),
}


@asynccontextmanager
async def raw_channel(amqp_url: str) -> AsyncIterator[aiormq.abc.AbstractChannel]:
    connection = await aiormq.connect(amqp_url)
    try:
        yield await connection.channel()
    finally:
        await connection.close()


@pytest.mark.parametrize("properties", ODD.values(), ids=ODD.keys())
async def test_a_message_with_odd_properties_comes_like_any_other(
    real_broker: Broker, amqp_url: str, properties: RawProperties
) -> None:
    await real_broker.declare(QUEUES)
    async with raw_channel(amqp_url) as channel:
        await channel.basic_publish(
            b"odd", exchange=JOBS.name, routing_key=SUBMIT_KEY, properties=properties
        )
    await real_broker.publish(JOBS, SUBMIT_KEY, b"neighbour", message_id="key")
    bodies: list[bytes] = []
    async with asyncio.timeout(10), real_broker.subscribe(JOBS_QUEUE, prefetch=9) as subscription:
        async for batch in subscription.batches(max_items=9):
            assert not any(one.redelivered for one in batch)
            bodies += [one.body for one in batch]
            await subscription.ack(batch)
            if len(bodies) == 2:
                break
    assert bodies == [b"odd", b"neighbour"]


async def test_what_can_be_read_of_odd_properties_is_read(
    real_broker: Broker, amqp_url: str
) -> None:
    await real_broker.declare(QUEUES)
    content = b"\x02\xff\xfet\x01" + b"\x04whenT" + b"\xff" * 8 + b"\x03keyS\x00\x00\x00\x01v"
    properties = RawProperties(0x2080, raw_headers(content).marshal()[2:] + b"\x03a\xffb")
    async with raw_channel(amqp_url) as channel:
        await channel.basic_publish(
            b"odd", exchange=JOBS.name, routing_key=SUBMIT_KEY, properties=properties
        )
    async with asyncio.timeout(10), real_broker.subscribe(JOBS_QUEUE, prefetch=1) as subscription:
        [one] = await anext(subscription.batches(max_items=1))
    assert one.message_id == "a\ufffdb"
    assert one.headers["\ufffd\ufffd"] is True
    assert one.headers["when"] is None
    assert one.headers["key"] == "v"


def test_the_client_library_still_decodes_by_the_tables_that_were_replaced() -> None:
    """A release of pamqp that decodes otherwise would make the leniency silently useless."""
    properties = Basic.Properties()
    properties.unmarshal(0x00C0, b"\x02\xff\xfe" + b"\xff" * 8)
    assert (properties.message_id, properties.timestamp) == ("\ufffd\ufffd", None)
    assert decode.by_type(b"\x00\x00\x00\x0c\x02\xff\xfeT" + b"\xff" * 8, "table") == (
        16,
        {"\ufffd\ufffd": None},
    )


async def test_each_delivery_has_a_key_of_its_own(broker: Broker) -> None:
    await broker.declare(QUEUES)
    for _ in range(2):
        await broker.publish(JOBS, SUBMIT_KEY, b"{}")
    keys: set[str] = set()
    async with asyncio.timeout(10), broker.subscribe(JOBS_QUEUE, prefetch=9) as subscription:
        async for batch in subscription.batches(max_items=9):
            keys |= {one.fallback_key for one in batch}
            if len(keys) == 2:
                break
    assert all(len(key) == 32 for key in keys)


async def test_neighbours_of_a_message_that_is_lost_every_time_are_delivered(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[int] = []

    def no_wait(failures: int) -> float:
        waits.append(failures)
        return 0.0

    monkeypatch.setattr("modelyard.broker.consuming.backoff_s", no_wait)
    handled: dict[bytes, int] = {}
    sizes: list[int] = []

    async def handle(subscription: Subscription, batch: list[Delivery]) -> None:
        sizes.append(len(batch))
        if any(one.body == b"poison" for one in batch):
            raise BrokerUnavailableError
        handled.update({one.body: one.headers.get("x-delivery-count", 0) for one in batch})
        await subscription.ack(batch)

    async def all_handled() -> bool:
        return len(handled) == len(neighbours)

    await broker.declare(QUEUES)
    neighbours = [str(number).encode() for number in range(8)]
    for body in [b"poison", *neighbours]:
        await broker.publish(JOBS, SUBMIT_KEY, body)
    subscribe = partial(broker.subscribe, JOBS_QUEUE, prefetch=20)
    with capture_logs() as logs:
        consuming = asyncio.create_task(
            consume_forever(subscribe, handle, name="test", max_items=10)
        )
        assert await received(broker, DEAD_QUEUE, 1) == [b"poison"]
        await eventually(all_handled)
        consuming.cancel()
    # It was among them twice, and alone ever after.
    assert max(sizes[2:]) == 1
    assert sorted(handled) == neighbours
    assert max(handled.values()) <= 3
    # The backoff grew for as long as nothing was handled, and one line told each streak.
    assert max(waits) > 10
    assert len([one for one in logs if one["event"] == "consumer.lost"]) == waits.count(1) <= 2


async def test_after_two_losses_deliveries_come_one_by_one_for_a_while(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelyard.broker.consuming.backoff_s", lambda _: 0.0)
    held: asyncio.Queue[int] = asyncio.Queue()
    release = asyncio.Semaphore(0)
    calls = itertools.count(1)

    async def handle(subscription: Subscription, batch: list[Delivery]) -> None:
        if next(calls) <= 2:
            raise BrokerUnavailableError
        held.put_nowait(len(batch))
        await release.acquire()
        await subscription.ack(batch)

    async def all_prefetched() -> bool:
        return await broker.message_count(JOBS_QUEUE.name) == 0

    await broker.declare(QUEUES)
    for number in range(10):
        await broker.publish(JOBS, SUBMIT_KEY, str(number).encode())
    subscribe = partial(broker.subscribe, JOBS_QUEUE, prefetch=4)
    async with asyncio.timeout(20):
        consuming = asyncio.create_task(
            consume_forever(subscribe, handle, name="test", max_items=2)
        )
        # The four that came back twice, and three more: the care begins anew with each of them.
        for ready in (9, 8, 7, 6, 5, 4, 3):
            assert await held.get() == 1
            assert await broker.message_count(JOBS_QUEUE.name) == ready
            release.release()
        await held.get()
    await eventually(all_prefetched)
    consuming.cancel()


async def test_what_comes_back_twice_comes_behind_what_came_back_with_it_once(
    broker: Broker,
) -> None:
    """A property of RabbitMQ's, and none that anything wants: it is why nothing may come back."""
    await broker.declare(QUEUES)
    for number in range(5):
        await broker.publish(JOBS, SUBMIT_KEY, str(number).encode())
    for returned in (4, 1):
        async with asyncio.timeout(10), broker.subscribe(JOBS_QUEUE, prefetch=returned) as all_back:
            batches = all_back.batches(max_items=1)
            for _ in range(returned):
                await anext(batches)
    assert await received(broker, JOBS_QUEUE, 5) == [b"1", b"2", b"3", b"0", b"4"]


async def test_a_subscription_that_is_stopped_settles_what_it_has_and_gets_nothing_more(
    broker: Broker,
) -> None:
    await broker.declare(QUEUES)
    for number in range(3):
        await broker.publish(JOBS, SUBMIT_KEY, str(number).encode())
    async with asyncio.timeout(10), broker.subscribe(JOBS_QUEUE, prefetch=1) as subscription:
        batch = await anext(subscription.batches(max_items=1))
        await subscription.stop()
        await subscription.ack(batch)
        assert not subscription.is_lost
        assert await broker.message_count(JOBS_QUEUE.name) == 2
    assert await received(broker, JOBS_QUEUE, 2) == [b"1", b"2"]


async def test_the_next_consumer_keeps_the_order_of_what_the_last_one_had_in_hand(
    broker: Broker,
) -> None:
    """It takes the first message alone, and then all the others at once."""
    await broker.declare(QUEUES)
    bodies = [str(number).encode() for number in range(8)]
    for body in bodies:
        await broker.publish(JOBS, SUBMIT_KEY, body)
    async with asyncio.timeout(10), broker.subscribe(JOBS_QUEUE, prefetch=6) as dies:
        batches = dies.batches(max_items=1)
        for _ in range(6):
            await anext(batches)
    handled: list[bytes] = []

    async def handle(subscription: Subscription, batch: list[Delivery]) -> None:
        handled.extend(one.body for one in batch)
        await subscription.ack(batch)

    async def all_handled() -> bool:
        return len(set(handled)) == len(bodies)

    subscribe = partial(broker.subscribe, JOBS_QUEUE, prefetch=20)
    consuming = asyncio.create_task(
        consume_forever(subscribe, handle, name="test", max_items=10, first_alone=True)
    )
    await eventually(all_handled)
    consuming.cancel()
    assert list(dict.fromkeys(handled)) == bodies


async def test_a_message_that_ends_its_process_each_time_takes_no_neighbour_with_it(
    broker: Broker,
) -> None:
    """Each process is a consumer that is cancelled with all that it has prefetched."""
    await broker.declare(QUEUES)
    neighbours = [str(number).encode() for number in range(8)]
    for body in [b"poison", *neighbours]:
        await broker.publish(JOBS, SUBMIT_KEY, body)
    handled: dict[bytes, int] = {}
    died: asyncio.Queue[None] = asyncio.Queue()

    async def handle(subscription: Subscription, batch: list[Delivery]) -> None:
        if any(one.body == b"poison" for one in batch):
            died.put_nowait(None)
            await asyncio.Event().wait()
        handled.update({one.body: one.returned for one in batch})
        await subscription.ack(batch)

    def start() -> asyncio.Task[None]:
        subscribe = partial(broker.subscribe, JOBS_QUEUE, prefetch=20)
        return asyncio.create_task(
            consume_forever(subscribe, handle, name="test", max_items=10, first_alone=True)
        )

    async def all_handled() -> bool:
        return len(handled) == len(neighbours)

    async with asyncio.timeout(30):
        for _ in range(int(JOBS_QUEUE.arguments["x-delivery-limit"]) + 1):
            consuming = start()
            await died.get()
            consuming.cancel()
            with pytest.raises(asyncio.CancelledError):
                await consuming
    assert await received(broker, DEAD_QUEUE, 1) == [b"poison"]
    consuming = start()
    await eventually(all_handled)
    consuming.cancel()
    assert max(handled.values()) <= 1


async def test_more_bytes_than_may_be_held_go_back_and_come_one_by_one(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelyard.broker.consuming.backoff_s", lambda _: 0.0)
    monkeypatch.setattr("modelyard.broker.subscription.MAX_HELD_BYTES", 5_000)
    sizes: list[int] = []
    numbers: list[bytes] = []
    all_came = asyncio.Event()
    subscriptions: list[Subscription] = []

    async def handle(subscription: Subscription, batch: list[Delivery]) -> None:
        subscriptions.append(subscription)
        assert subscription._held <= 5_000
        sizes.append(len(batch))
        await subscription.ack(batch)
        numbers.extend(one.body[:2] for one in batch)
        if len(set(numbers)) == 20:
            all_came.set()

    await broker.declare(QUEUES)
    for number in range(20):
        await broker.publish(JOBS, SUBMIT_KEY, b"%02d" % number + b"x" * 1_000)
    subscribe = partial(broker.subscribe, JOBS_QUEUE, prefetch=20)
    async with asyncio.timeout(20):
        consuming = asyncio.create_task(
            consume_forever(subscribe, handle, name="test", max_items=20)
        )
        await all_came.wait()
    consuming.cancel()
    # What was acked as the first one ended may come again; the order stays.
    assert list(dict.fromkeys(numbers)) == [b"%02d" % number for number in range(20)]
    assert sizes[-10:] == [1] * 10
    assert subscriptions[-1]._held == 0


async def test_headers_count_among_the_bytes_that_are_held(
    real_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelyard.broker.subscription.MAX_AT_A_TIME_BYTES", 250_000)
    await real_broker.declare(QUEUES)
    for _ in range(4):
        await real_broker.publish(JOBS, SUBMIT_KEY, b"{}", headers={"big": "x" * 100_000})
    async with asyncio.timeout(10), real_broker.subscribe(JOBS_QUEUE, prefetch=9) as subscription:

        async def all_ready() -> bool:
            return subscription._ready.qsize() == 4

        await eventually(all_ready)
        assert 400_000 < subscription._held < 401_000
        batch = await anext(subscription.batches(max_items=9))
        assert [one.headers_cut for one in batch] == [True, True]
        await subscription.ack(batch)
        assert 200_000 < subscription._held < 201_000
    monkeypatch.setattr("modelyard.broker.subscription.MAX_HELD_BYTES", 150_000)
    async with real_broker.subscribe(JOBS_QUEUE, prefetch=9) as subscription:
        await eventually(lambda: _lost(subscription), what="the end: two are too many")


async def test_a_batch_ends_where_its_bytes_do_and_nothing_is_left_out(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelyard.broker.subscription.MAX_AT_A_TIME_BYTES", 2_500)
    await broker.declare(QUEUES)
    lengths = [1_000, 1_000, 1_000, 9_000, 1_000, 1_000]
    for length in lengths:
        await broker.publish(JOBS, SUBMIT_KEY, b"x" * length)
    async with asyncio.timeout(10), broker.subscribe(JOBS_QUEUE, prefetch=9) as subscription:

        async def all_ready() -> bool:
            return subscription._ready.qsize() == len(lengths)

        await eventually(all_ready)
        batches: list[list[int]] = []
        while sum(map(len, batches)) < len(lengths):
            batch = await anext(subscription.batches(max_items=9))
            batches.append([len(one.body) for one in batch])
            await subscription.ack(batch)
    assert batches == [[1_000, 1_000], [1_000], [9_000], [1_000, 1_000]]


async def test_of_a_body_beyond_every_limit_the_beginning_and_the_size_are_kept(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelyard.broker.subscription.MAX_BODY_BYTES", 1_000)
    monkeypatch.setattr("modelyard.broker.subscription.KEPT_OF_LARGER_BYTES", 10)
    await broker.declare(QUEUES)
    await broker.publish(JOBS, SUBMIT_KEY, b"x" * 1_000)
    await broker.publish(JOBS, SUBMIT_KEY, b"y" * 1_001)
    async with asyncio.timeout(10), broker.subscribe(JOBS_QUEUE, prefetch=9) as subscription:
        taken: list[Delivery] = []
        async for batch in subscription.batches(max_items=9):
            taken += batch
            if len(taken) == 2:
                break
        whole, cut = taken
        assert (whole.cut, whole.size, len(whole.body)) == (False, 1_000, 1_000)
        assert (cut.cut, cut.size, cut.body) == (True, 1_001, b"y" * 10)
        assert len(cut.raw.body) == 10  # the library holds no more of it either
        await subscription.ack(taken)


async def test_a_queue_that_was_deleted_is_prepared_again(
    broker: Broker, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelyard.broker.consuming.backoff_s", lambda _: 0.01)
    await broker.declare(QUEUES)
    seen: list[bytes] = []
    prepared = itertools.count(1)
    fails_first: list[int] = []

    async def prepare() -> None:
        if next(prepared) == 1:
            fails_first.append(1)
            raise BrokerUnavailableError
        await broker.declare(QUEUES)

    async def handle(subscription: Subscription, batch: list[Delivery]) -> None:
        seen.extend(one.body for one in batch)
        await subscription.ack(batch)

    consuming = asyncio.create_task(
        consume_forever(
            partial(broker.subscribe, JOBS_QUEUE, prefetch=2),
            handle,
            name="test",
            max_items=1,
            prepare=prepare,
        )
    )
    await broker.publish(JOBS, SUBMIT_KEY, b"before")
    await eventually(lambda: _is(seen, [b"before"]))
    assert fails_first == []
    await server.delete(JOBS_QUEUE)

    async def published() -> bool:
        try:
            await broker.publish(JOBS, SUBMIT_KEY, b"after")
        except BrokerUnavailableError:
            return False
        return True

    await eventually(published)
    await eventually(lambda: _is(seen, [b"before", b"after"]))
    assert fails_first == [1]
    consuming.cancel()


async def test_a_consumer_that_is_cancelled_in_the_moment_of_its_connection_ends(
    real_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await real_broker.declare(QUEUES)
    connect = aiormq.connect
    made: list[aiormq.abc.AbstractConnection] = []

    async def connect_and_be_cancelled(*args: object, **kwargs: object) -> object:
        made.append(await connect(*args, **kwargs))  # type: ignore[arg-type]
        asyncio.get_running_loop().call_soon(consuming.cancel)
        return made[-1]

    monkeypatch.setattr(aiormq, "connect", connect_and_be_cancelled)
    consuming = asyncio.create_task(_never_handling(real_broker))
    done, _ = await asyncio.wait((consuming,), timeout=5)
    monkeypatch.undo()
    while not consuming.done():
        consuming.cancel()
        await asyncio.wait((consuming,), timeout=1)
    assert done

    async def closed() -> bool:
        return all(one.is_closed for one in made)

    await eventually(closed, what="the end of the connection that nobody waited for")


async def _never_handling(broker: Broker) -> None:
    async def handle(_: Subscription, __: list[Delivery]) -> None:
        raise AssertionError

    await consume_forever(
        lambda: broker.subscribe(JOBS_QUEUE, prefetch=1), handle, name="test", max_items=1
    )


async def test_what_breaks_in_a_cancelled_task_stays_its_cancellation() -> None:
    """Closing after a cancellation fails if the connection is gone too."""
    inside = asyncio.Event()

    async def work() -> None:
        with losses():
            try:
                inside.set()
                await asyncio.Event().wait()
            finally:
                raise ConnectionResetError

    working = asyncio.create_task(work())
    await inside.wait()
    working.cancel()
    await asyncio.wait((working,))
    assert working.cancelled()


async def test_a_programming_error_is_not_taken_for_a_lost_broker(
    real_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wrong(*_: object, **__: object) -> None:
        raise RuntimeError("dictionary changed size during iteration")

    await real_broker.declare(QUEUES)
    monkeypatch.setattr(aio_pika.Exchange, "publish", wrong)
    with pytest.raises(RuntimeError, match="dictionary"):
        await real_broker.publish(JOBS, SUBMIT_KEY, b"{}")


async def test_a_connection_that_closed_meanwhile_is_a_lost_broker(real_broker: Broker) -> None:
    """Aiormq says it with a bare RuntimeError."""
    await real_broker.ping()
    assert real_broker._publishing is not None
    connection, _ = real_broker._publishing
    assert isinstance(connection, aio_pika.Connection)
    assert connection.transport is not None
    underlay = connection.transport.connection
    await underlay.close()
    with pytest.raises(RuntimeError) as bare:
        await underlay.channel()
    assert type(bare.value) is RuntimeError
    with pytest.raises(BrokerUnavailableError), losses():
        raise bare.value


async def test_publishing_over_a_dead_connection_ends_as_a_lost_broker(
    real_broker: Broker, rabbitmq: RabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelyard.broker.connection.HEARTBEAT_S", 1)
    await real_broker.declare(QUEUES)
    await real_broker.publish(JOBS, SUBMIT_KEY, b"{}")
    rabbitmq.pause()
    try:
        with pytest.raises(BrokerUnavailableError):
            await real_broker.publish(JOBS, SUBMIT_KEY, b"{}", timeout_s=30.0)
    finally:
        rabbitmq.resume()


TOPICS = {
    "operation.queued": (["operation.queued"], True),
    "operation.*": (["operation.*"], True),
    "#": (["#"], True),
    "operation.#": (["operation.#"], True),
    "*": (["*"], False),
    "job.# and #.queued": (["job.#", "#.queued"], True),
    "*.queued.#": (["*.queued.#"], True),
    "*.*.*": (["*.*.*"], False),
}


@pytest.mark.parametrize(("keys", "takes"), TOPICS.values(), ids=TOPICS.keys())
async def test_a_tap_hears_what_its_patterns_take_and_only_once(
    broker: Broker, keys: list[str], *, takes: bool
) -> None:
    await broker.declare(QUEUES)
    async with broker.tap(EVENTS, [*keys, "the.end"]) as subscription:
        await broker.publish(EVENTS, "operation.queued", b"it", mandatory=False)
        await broker.publish(EVENTS, "the.end", b"end", mandatory=False)
        heard: list[bytes] = []
        async with asyncio.timeout(10):
            async for batch in subscription.batches(max_items=9):
                heard += [one.body for one in batch]
                if b"end" in heard:
                    break
    assert heard == ([b"it", b"end"] if takes else [b"end"])


async def test_messages_without_confirmation_come_in_order_and_name_their_sender(
    broker: Broker,
) -> None:
    await broker.declare(QUEUES)
    sent = [(f"operation.{number % 3}", str(number).encode()) for number in range(300)]
    sent[7:9] = [("operation.large", b"x" * 300_000), ("operation.empty", b"")]
    async with broker.tap(EVENTS, ["operation.*"]) as subscription:
        await broker.publish_unconfirmed(EVENTS, [("nobody.listens", b"x")], message_type="t")
        await broker.publish_unconfirmed(EVENTS, [], message_type="t")
        await broker.publish_unconfirmed(EVENTS, sent, message_type="t")
        heard: list[tuple[str, bytes]] = []
        async with asyncio.timeout(10):
            async for batch in subscription.batches(max_items=50):
                heard += [(one.routing_key, one.body) for one in batch]
                assert {(one.type, one.user_id) for one in batch} == {("t", broker.user)}
                if len(heard) >= len(sent):
                    break
    assert heard == sent


async def test_a_reply_goes_to_the_queue_of_its_name_or_nowhere(broker: Broker) -> None:
    await broker.declare(QUEUES)
    await broker.reply([], message_type="t")
    lost, sent = (
        DirectReply("modelyard.none", "c-0", b"lost"),
        DirectReply(JOBS_QUEUE.name, "c-1", b"x"),
    )
    bare = DirectReply(JOBS_QUEUE.name, None, b"")
    await broker.reply([lost, sent, bare], message_type="t")
    heard: list[Delivery] = []
    async with asyncio.timeout(10), broker.subscribe(JOBS_QUEUE, prefetch=9) as subscription:
        async for batch in subscription.batches(max_items=9):
            heard += batch
            if len(heard) == 2:
                break
    assert [(one.body, one.properties.correlation_id) for one in heard] == [
        (b"x", "c-1"),
        (b"", None),
    ]
    assert {(one.type, one.user_id) for one in heard} == {("t", broker.user)}
    assert {one.properties.content_type for one in heard} == {"application/json"}


async def test_what_a_message_says_of_its_body_and_its_answer_arrives(broker: Broker) -> None:
    await broker.declare(QUEUES)
    said = MessageProperties("text/plain", "gzip", "amq.gen-1", "c")
    for properties in (said, MessageProperties()):
        await broker.publish(JOBS, SUBMIT_KEY, b"x", properties=properties)
    heard: list[Delivery] = []
    async with asyncio.timeout(10), broker.subscribe(JOBS_QUEUE, prefetch=9) as subscription:
        async for batch in subscription.batches(max_items=9):
            heard += batch
            if len(heard) == 2:
                break
    assert [one.properties for one in heard] == [said, MessageProperties()]


async def test_a_message_that_nobody_takes_in_time_becomes_a_dead_letter(broker: Broker) -> None:
    short = Queue(
        "short",
        HOSTS,
        "short",
        {"x-queue-type": "quorum", "x-message-ttl": 100, "x-dead-letter-exchange": DEAD.name},
    )
    await broker.declare([*QUEUES, short])
    await broker.publish(HOSTS, "short", b"late")
    async with asyncio.timeout(10), broker.subscribe(DEAD_QUEUE, prefetch=1) as subscription:
        [one] = await anext(subscription.batches(max_items=1))
    assert (one.body, one.routing_key) == (b"late", "short")
    [death] = one.headers["x-death"]
    assert (death["reason"], death["queue"]) == ("expired", "short")


async def test_a_message_keeps_its_priority_also_as_a_dead_letter(broker: Broker) -> None:
    await broker.declare(QUEUES)
    await broker.publish(JOBS, SUBMIT_KEY, b"urgent", priority=255)
    await broker.publish(JOBS, SUBMIT_KEY, b"as usual")
    buried = ErrorInfo(code=ErrorCode.INVALID_JSON, message="It is not JSON.")
    async with asyncio.timeout(10), broker.subscribe(JOBS_QUEUE, prefetch=2) as subscription:
        held: list[Delivery] = []
        while len(held) < 2:
            held += await anext(subscription.batches(max_items=2))
        for one in held:
            await send_to_dead_letters(broker, one, buried, queue=JOBS_QUEUE.name)
        await subscription.ack(held)
    async with asyncio.timeout(10), broker.subscribe(DEAD_QUEUE, prefetch=2) as subscription:
        letters: list[Delivery] = []
        while len(letters) < 2:
            letters += await anext(subscription.batches(max_items=2))
    for found in (held, letters):
        assert {one.body: one.priority for one in found} == {b"urgent": 255, b"as usual": 0}


async def test_only_the_first_consumer_is_active_until_it_goes(broker: Broker) -> None:
    await broker.declare(QUEUES)
    async with broker.subscribe(JOBS_QUEUE, prefetch=9) as second:
        async with broker.subscribe(JOBS_QUEUE, prefetch=9) as waiting:
            await broker.publish(JOBS, SUBMIT_KEY, b"1")
            [one] = await anext(second.batches(max_items=1))
            assert one.body == b"1"
            assert waiting._ready.empty()
        await second.ack([one])
        await broker.publish(JOBS, SUBMIT_KEY, b"2")
        async with asyncio.timeout(10):
            assert [two.body for two in await anext(second.batches(max_items=1))] == [b"2"]


async def test_what_comes_back_keeps_its_place_before_what_is_newer(broker: Broker) -> None:
    await broker.declare(QUEUES)
    sent = [str(number).encode() for number in range(4)]
    for body in sent[:2]:
        await broker.publish(JOBS, SUBMIT_KEY, body)
    async with broker.subscribe(JOBS_QUEUE, prefetch=1) as subscription:
        await anext(subscription.batches(max_items=1))
        for body in sent[2:]:
            await broker.publish(JOBS, SUBMIT_KEY, body)
    assert await received(broker, JOBS_QUEUE, 4) == sent


async def test_deliveries_of_a_consumer_that_went_can_not_be_settled(
    broker: Broker, server: Server
) -> None:
    await broker.declare(QUEUES)
    await broker.publish(JOBS, SUBMIT_KEY, b"once")
    async with broker.subscribe(JOBS_QUEUE, prefetch=1) as subscription:
        batch = await anext(subscription.batches(max_items=1))
        await server.close_connections()
        await eventually(lambda: _lost(subscription))
        with pytest.raises(BrokerUnavailableError):
            await subscription.ack(batch)
    again = server.broker()
    await again.ping()
    assert await received(again, JOBS_QUEUE, 1) == [b"once"]
    await again.close()


async def _lost(subscription: Subscription) -> bool:
    return subscription.is_lost


async def test_a_message_carries_its_senders_verified_user(broker: Broker) -> None:
    await broker.declare(QUEUES)
    await broker.publish(JOBS, SUBMIT_KEY, b"{}")
    async with broker.subscribe(JOBS_QUEUE, prefetch=1) as subscription:
        [one] = await anext(subscription.batches(max_items=1))
    assert one.user_id == broker.user == "guest"


async def test_queues_are_there_once_all_of_them_were_declared(broker: Broker) -> None:
    await broker.declare([JOBS_QUEUE])
    assert await broker.has_queues([JOBS_QUEUE.name])
    assert not await broker.has_queues([JOBS_QUEUE.name, REPORTS_QUEUE.name])
    await broker.declare([REPORTS_QUEUE])
    assert await broker.has_queues([JOBS_QUEUE.name, REPORTS_QUEUE.name])


async def test_a_user_cannot_sign_as_another(real_broker: Broker) -> None:
    await real_broker.declare(QUEUES)
    real_broker.user = "gateway"
    with pytest.raises(BrokerUnavailableError, match="user_id"):
        await real_broker.publish(JOBS, SUBMIT_KEY, b"{}")
