"""A consumer that the broker lost without a word is found out, and made anew."""

import asyncio
from functools import partial

import pytest

from modelyard.broker import Broker, Delivery, Subscription, consume_forever
from modelyard.contract.topology import JOBS, JOBS_QUEUE, SUBMIT_KEY
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
