"""A consumer that the broker lost without a word is found out, and made anew.

On a real RabbitMQ only: the one in memory loses no consumer without telling it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import aiormq
import pytest
from aio_pika.abc import AbstractConnection
from pamqp.commands import Basic

from deploy.local.rabbitmq import RabbitMQ
from modelyard.broker import Broker, Delivery, Subscription, connection, consume_forever
from modelyard.contract.topology import EVENTS, EXCHANGES, JOBS, JOBS_QUEUE, SUBMIT_KEY
from tests.support.waiting import eventually


async def test_a_consumer_that_the_broker_does_not_know_is_made_anew(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelyard.broker.connection.WATCH_S", 0.05)
    await broker.declare([JOBS_QUEUE])
    counts: list[int] = []
    subscribed: list[Subscription] = []
    real = broker.consumer_count

    async def forgotten_once(queue_name: str) -> int:
        counts.append(await real(queue_name))
        return 0 if len(counts) == 1 else counts[-1]

    monkeypatch.setattr(broker, "consumer_count", forgotten_once)
    taken: list[bytes] = []

    async def handle(subscription: Subscription, batch: list[Delivery]) -> None:
        subscribed.append(subscription)
        taken.extend(one.body for one in batch)
        await subscription.ack(batch)

    work = asyncio.create_task(
        consume_forever(
            partial(broker.subscribe, JOBS_QUEUE, prefetch=10), handle, name="t", max_items=5
        )
    )
    try:

        async def looked(times: int) -> bool:
            return len(counts) >= times

        await broker.publish(JOBS, SUBMIT_KEY, b"before")
        await eventually(partial(looked, 1))
        await eventually(partial(looked, 3))
        await broker.publish(JOBS, SUBMIT_KEY, b"after")

        async def both() -> bool:
            return {b"before", b"after"} <= set(taken)

        await eventually(both)
        assert subscribed[0] is not subscribed[-1]
        assert subscribed[0].is_lost
        assert counts[-1] == 1
    finally:
        work.cancel()
        await asyncio.wait([work])


class Ear:
    """A tap on the events that is made anew whenever it is lost, and what it heard."""

    def __init__(self, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[Subscription] = []
        self.heard: list[bytes] = []
        self._broker = broker
        self._connections: list[AbstractConnection] = []
        real = broker._connect

        async def noted(purpose: str) -> AbstractConnection:
            made = await real(purpose)
            if purpose == "consume":
                self._connections.append(made)
            return made

        monkeypatch.setattr(broker, "_connect", noted)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        work = asyncio.create_task(consume_forever(self._tap, self._handle, name="t", max_items=5))
        try:
            await self.hears(b"first")
            yield
        finally:
            work.cancel()
            await asyncio.wait([work])

    async def hears(self, word: bytes) -> None:
        """Return once something that is said again and again was heard."""

        async def heard() -> bool:
            await self._broker.publish(EVENTS, "operation.queued", word, mandatory=False)
            return word in self.heard

        await eventually(heard, what=f"{word!r}")

    async def anew(self) -> None:
        async def again() -> bool:
            return len(self.made) > 1

        await eventually(again, what="another tap")

    async def lose_consumer(self) -> None:
        """Have the broker forget the consumer; neither it nor the client library says so."""
        transport = self._connections[-1].transport
        assert transport is not None
        channels = [
            one for one in transport.connection.channels.values() if isinstance(one, aiormq.Channel)
        ]
        [channel] = [one for one in channels if one.consumers]
        [tag] = channel.consumers
        await channel.rpc(Basic.Cancel(consumer_tag=tag, nowait=True))

    @asynccontextmanager
    async def _tap(self) -> AsyncIterator[Subscription]:
        async with self._broker.tap(EVENTS, ["operation.#"]) as subscription:
            self.made.append(subscription)
            yield subscription

    async def _handle(self, subscription: Subscription, batch: list[Delivery]) -> None:
        self.heard.extend(one.body for one in batch)
        await subscription.ack(batch)


async def test_a_tap_that_lost_its_consumer_without_a_word_is_made_anew(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "WATCH_S", 0.05)
    await broker.declare([JOBS_QUEUE], exchanges=EXCHANGES)
    ear = Ear(broker, monkeypatch)
    async with ear.listening():
        await ear.lose_consumer()
        await ear.anew()
        await ear.hears(b"after")
        assert ear.made[0].is_lost
        assert not ear.made[-1].is_lost


async def test_a_tap_whose_queue_is_there_without_its_consumer_is_made_anew(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "WATCH_S", 0.05)
    await broker.declare([JOBS_QUEUE], exchanges=EXCHANGES)
    counts: list[int] = []
    real = connection._own_consumer_count

    async def forgotten_once(own: AbstractConnection, queue_name: str) -> int:
        counts.append(await real(own, queue_name))
        return 0 if len(counts) == 1 else counts[-1]

    monkeypatch.setattr(connection, "_own_consumer_count", forgotten_once)
    ear = Ear(broker, monkeypatch)
    async with ear.listening():
        await ear.anew()
        await ear.hears(b"after")
        assert set(counts) == {1}
        assert len(ear.made) == 2


async def test_looks_at_a_tap_cost_it_nothing_not_even_those_that_nobody_answers(
    broker: Broker, rabbitmq: RabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "WATCH_S", 0.05)
    monkeypatch.setattr(connection, "INSPECT_TIMEOUT_S", 0.2)
    await broker.declare([JOBS_QUEUE], exchanges=EXCHANGES)
    looks: list[int | None] = []
    real = connection._own_consumer_count

    async def noted(own: AbstractConnection, queue_name: str) -> int:
        looks.append(None)
        looks[-1] = count = await real(own, queue_name)
        return count

    monkeypatch.setattr(connection, "_own_consumer_count", noted)
    ear = Ear(broker, monkeypatch)

    async def answered(times: int) -> bool:
        return looks.count(1) >= times

    async def unanswered() -> bool:
        return looks.count(None) > 3

    async with ear.listening():
        await eventually(partial(answered, 3), what="three looks")
        rabbitmq.pause()
        try:
            await eventually(unanswered, what="looks without an answer")
        finally:
            rabbitmq.resume()
        await eventually(partial(answered, looks.count(1) + 3), what="three looks more")
        await ear.hears(b"after")
        assert len(ear.made) == 1
