"""A load at a constant rate, over a broker that only notes when what was published."""

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from bench.scale.load import AT_ONCE, Load

if TYPE_CHECKING:
    from modelyard.broker import Broker, Subscription

PER_S = 500.0
WANTED = 20


class NotingBroker:
    """Notes the jobs of each message and when it came; fails after so many messages.

    It confirms none of them before it has `confirmed_at`.
    """

    def __init__(self, most: int = 1_000_000, *, confirmed_at: int = 0) -> None:
        self.jobs: list[list[str]] = []
        self.at: list[float] = []
        self.enough = asyncio.Event()
        self.confirming = asyncio.Event()
        self._most = most
        self._confirmed_at = confirmed_at

    async def publish(self, _exchange: Any, _key: str, body: bytes, *, message_type: str) -> None:
        assert message_type
        if len(self.jobs) == self._most:
            self.enough.set()
            raise ConnectionError
        submitted = json.loads(body)["requests"]
        self.jobs.append([one["request"]["job_id"] for one in submitted])
        self.at.append(time.monotonic())
        if len(self.jobs) == WANTED:
            self.enough.set()
        if len(self.jobs) >= self._confirmed_at:
            self.confirming.set()
        await self.confirming.wait()


def load_on(broker: NotingBroker) -> Load:
    return Load(cast("Broker", broker), cast("Subscription", None))


async def test_each_operation_is_a_message_of_its_own_and_none_comes_early() -> None:
    broker, began = NotingBroker(), time.monotonic()

    async with load_on(broker).keep_rate(["a", "b"], PER_S):
        await broker.enough.wait()

    assert broker.jobs[:3] == [["a"], ["b"], ["a"]]
    assert all(at - began >= number / PER_S for number, at in enumerate(broker.at))


async def test_an_error_of_the_load_is_raised_at_the_end() -> None:
    broker = NotingBroker(most=2)

    with pytest.raises(ConnectionError):
        async with load_on(broker).keep_rate(["a"], PER_S):
            await broker.enough.wait()


async def test_no_operation_waits_for_the_confirm_of_the_one_before() -> None:
    broker = NotingBroker(confirmed_at=WANTED)

    async with asyncio.timeout(10), load_on(broker).keep_rate(["a"], PER_S):
        await broker.enough.wait()

    assert len(broker.jobs) >= WANTED


async def test_only_so_many_wait_for_their_confirm_and_all_have_it_at_the_end() -> None:
    broker = NotingBroker(confirmed_at=AT_ONCE + 1)
    load = load_on(broker)

    async with asyncio.timeout(10), load.keep_rate(["a"], per_s=1e9):
        for _ in range(4 * AT_ONCE):  # as often as all of them and more could begin
            await asyncio.sleep(0)
        assert (len(broker.jobs), load.submitted) == (AT_ONCE, 0)
        broker.confirming.set()

    assert load.submitted == len(broker.jobs) >= AT_ONCE
