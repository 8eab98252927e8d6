"""What a message says of itself, besides its body: by a client that sets only what it is told."""

import gzip
import json
import struct
from collections.abc import AsyncIterator

import aio_pika
import pytest

from modelyard.contract.errors import ErrorCode
from modelyard.contract.ids import operation_id_for_key
from modelyard.contract.states import OperationState
from modelyard.contract.topology import JOBS, SUBMIT_KEY
from modelyard.store.records import DeadLetter
from tests.support.dispatcher.driver import DispatcherDriver
from tests.support.servers.raw_properties import RawProperties, raw_headers
from tests.support.waiting import eventually

REQUEST = json.dumps({"job_id": "j", "operation_type": "TERMINATE"}).encode()


class Publisher:
    """A client of RabbitMQ's, with a connection of its own."""

    def __init__(self, channel: aio_pika.abc.AbstractChannel) -> None:
        self.channel = channel

    async def publish(self, message: aio_pika.Message) -> None:
        exchange = await self.channel.get_exchange(JOBS.name, ensure=False)
        await exchange.publish(message, SUBMIT_KEY)

    async def publish_raw(
        self, body: bytes, properties: RawProperties, *, exchange: str, key: str
    ) -> None:
        """Publish with exactly these properties: the library gives any other message an id."""
        channel = await self.channel.get_underlay_channel()
        await channel.basic_publish(body, exchange=exchange, routing_key=key, properties=properties)


@pytest.fixture
async def publisher(amqp_url: str) -> AsyncIterator[Publisher]:
    async with await aio_pika.connect(amqp_url) as connection:
        yield Publisher(await connection.channel(publisher_confirms=False))


def _header(name: str, value: str) -> bytes:
    """Return a header as AMQP writes it."""
    return (
        bytes([len(name)]) + name.encode() + b"S" + struct.pack(">I", len(value)) + value.encode()
    )


async def the_letter(driver: DispatcherDriver) -> DeadLetter:
    """Return the only dead letter."""
    letter = await driver.dead_letter()
    page = await driver.store.dead_letters.page({}, after=None, limit=2)
    assert len(page.items) == 1
    return letter


@pytest.mark.parametrize("requests", [1, 1_000])
async def test_gzip_is_read_as_what_it_unpacks_to(
    driver: DispatcherDriver, publisher: Publisher, requests: int
) -> None:
    body = REQUEST if requests == 1 else b"[" + b",".join([REQUEST] * requests) + b"]"
    await publisher.publish(
        aio_pika.Message(gzip.compress(body), message_id="k", content_encoding="gzip")
    )
    key = "k" if requests == 1 else f"k/{requests - 1}"
    await driver.operation(operation_id_for_key(key))


async def test_a_bomb_becomes_a_dead_letter_and_holds_up_nobody(
    driver: DispatcherDriver, publisher: Publisher
) -> None:
    bomb = gzip.compress(b"[" + b" " * (256 << 20))
    await publisher.publish(aio_pika.Message(bomb, content_encoding="gzip"))
    await publisher.publish(aio_pika.Message(REQUEST, message_id="good"))
    await driver.operation(operation_id_for_key("good"), OperationState.SUCCEEDED)
    letter = await the_letter(driver)
    assert letter.reason == ErrorCode.BODY_TOO_LARGE
    assert letter.payload == bomb
    assert letter.content_encoding == "gzip"


@pytest.mark.parametrize(
    ("content_type", "encoding", "named"),
    [
        ("application/x-python-serialize", None, "application/x-python-serialize"),
        ("application/json", "br", "'br'"),
    ],
)
async def test_another_kind_of_body_is_refused_by_its_name(
    driver: DispatcherDriver,
    publisher: Publisher,
    content_type: str,
    encoding: str | None,
    named: str,
) -> None:
    await publisher.publish(
        aio_pika.Message(REQUEST, content_type=content_type, content_encoding=encoding)
    )
    letter = await the_letter(driver)
    assert letter.reason == ErrorCode.UNSUPPORTED_MEDIA_TYPE
    assert named in letter.detail
    assert (letter.content_type, letter.content_encoding) == (content_type, encoding)


async def test_a_dead_letter_shows_nothing_that_its_publisher_did_not_set(
    driver: DispatcherDriver, publisher: Publisher
) -> None:
    own = raw_headers(_header("own", "yes"))
    await publisher.publish_raw(b"{", own, exchange=JOBS.name, key=SUBMIT_KEY)
    letter = await the_letter(driver)
    assert letter.reason == ErrorCode.INVALID_JSON
    assert letter.headers == {"own": "yes"}
    told = (letter.message_id, letter.message_type, letter.content_type, letter.content_encoding)
    assert told == (None, None, None, None)
    assert letter.sender is None


async def test_what_rabbitmq_adds_to_a_dead_letter_is_not_shown_as_its_publishers(
    driver: DispatcherDriver, publisher: Publisher
) -> None:
    """RabbitMQ itself moves it: it expires in a queue that sends what is dead to ours."""
    queue = await publisher.channel.declare_queue(
        exclusive=True,
        arguments={"x-dead-letter-exchange": "modelyard.dead", "x-message-ttl": 0},
    )
    own = {"own": "yes", "x-modelyard-reason": "internal"}
    table = b"".join(_header(name, value) for name, value in own.items())
    typed = RawProperties(0xA000, b"\x0atext/plain" + struct.pack(">I", len(table)) + table)
    await publisher.publish_raw(REQUEST, typed, exchange="", key=queue.name)

    async def moved() -> DeadLetter | None:
        page = await driver.store.dead_letters.page({}, after=None, limit=1)
        return page.items[0] if page.items else None

    letter = await eventually(moved, what="the dead letter")
    assert letter.reason == ErrorCode.EXPIRED_MESSAGE
    assert letter.headers == own
    assert (letter.message_id, letter.content_type) == (None, "text/plain")
