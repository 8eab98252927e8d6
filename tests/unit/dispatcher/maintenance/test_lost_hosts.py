"""Hosts whose heartbeats stopped, and the work that is taken from them."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from dispatcher.control import ControlPublisher
from dispatcher.maintenance.lost_hosts import LostHosts
from dispatcher.maintenance.retries import Retries
from modelyard.contract.messages import Heartbeat
from modelyard.contract.states import Liveness
from tests.support.dispatcher.parts import HOST, INCARNATION, DispatcherParts


class Losing:
    """The repair that gives hosts up, and one host that has a loaded job."""

    def __init__(self) -> None:
        self.parts = parts = DispatcherParts()
        self.retries = Retries(parts.store, parts.event_log, parts.scheduler, max_attempts=3)
        self.lost = LostHosts(
            parts.store,
            parts.event_log,
            parts.scheduler,
            ControlPublisher(parts.broker),
            self.retries,
        )

    def set_liveness(self, liveness: Liveness) -> None:
        """Have the host in the record as it is after a silence."""
        database = self.parts.database
        database.write("hosts", {**database.collections["hosts"][HOST], "liveness": liveness})

    @property
    def told(self) -> list[str]:
        """The types of all events so far."""
        return [one["type"] for one in self.parts.database.documents("events")]


@pytest.fixture
async def losing() -> AsyncIterator[Losing]:
    made = Losing()
    await made.parts.begin()
    running = asyncio.create_task(made.parts.event_log.run())
    yield made
    running.cancel()
    await asyncio.wait([running])


async def test_a_host_that_is_heard_just_before_it_is_given_up_is_not_called_lost(
    losing: Losing,
) -> None:
    parts, hosts = losing.parts, losing.parts.store.hosts
    losing.set_liveness(Liveness.SUSPECT)
    parts.pass_time(100)
    parts.link.hold(only=1)  # the answer that it is silent
    giving_up = asyncio.create_task(losing.lost.give_up())
    await parts.link.held.wait()
    assert await hosts.beat([Heartbeat(host_id=HOST, incarnation=INCARNATION)])
    parts.link.let_go()
    await giving_up
    host = await hosts.get(HOST)
    assert host is not None
    assert host.liveness is Liveness.ONLINE
    assert losing.told == []
