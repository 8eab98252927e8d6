"""Hosts that take work again: what waits for them starts."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from dispatcher.control import ControlPublisher
from dispatcher.maintenance.host_watch import HostWatch
from dispatcher.maintenance.lost_hosts import LostHosts
from dispatcher.maintenance.retries import Retries
from modelyard.contract.messages import Heartbeat
from modelyard.contract.states import Admission, Liveness, OperationState, Verb
from modelyard.store.records import NewOperation
from tests.support.dispatcher.parts import HOST, INCARNATION, MODEL, DispatcherParts, new_operation

TURNS = 100
"""Turns of the event loop, in which a pass of the scheduler ends."""


class Watched:
    """A dispatcher's parts whose scheduler runs, with a watch over the hosts."""

    def __init__(self) -> None:
        self.parts = parts = DispatcherParts()
        retries = Retries(parts.store, parts.event_log, parts.scheduler, max_attempts=3)
        control = ControlPublisher(parts.broker)
        lost = LostHosts(parts.store, parts.event_log, parts.scheduler, control, retries)
        self._watch = HostWatch(parts.store, parts.broker, parts.event_log, parts.scheduler, lost)

    async def look(self) -> None:
        """Look at the hosts, and let the scheduler do what it is woken for."""
        await self._watch.watch()
        for _ in range(TURNS):
            await asyncio.sleep(0)

    async def state(self, one: NewOperation) -> OperationState:
        return (await self.parts.recorded(one)).state


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    made = Watched()
    await made.parts.begin()
    loops = (made.parts.event_log.run(), made.parts.scheduler.run())
    running = [asyncio.create_task(loop) for loop in loops]
    yield made
    for task in running:
        task.cancel()
    await asyncio.wait(running)


async def test_what_waits_for_a_suspect_host_starts_once_its_heartbeats_are_back(
    watched: Watched,
) -> None:
    parts, one = watched.parts, new_operation()
    document = parts.database.collections["hosts"][HOST]
    parts.database.write("hosts", {**document, "liveness": Liveness.SUSPECT})
    await parts.first_pass.take([one])
    await watched.look()
    assert await watched.state(one) is OperationState.QUEUED
    heartbeat = Heartbeat(host_id=HOST, incarnation=INCARNATION, slots=4)
    assert await parts.store.hosts.beat([heartbeat])
    await watched.look()
    assert await watched.state(one) is OperationState.DISPATCHED


async def test_what_waits_for_room_starts_once_a_host_is_uncordoned(watched: Watched) -> None:
    parts = watched.parts
    await parts.store.models.put(MODEL)
    one = new_operation(Verb.DEPLOY_CREATE, "new", model=MODEL.name)
    document = parts.database.collections["hosts"][HOST]
    parts.database.write("hosts", {**document, "admission": Admission.CORDONED})
    await parts.first_pass.take([one])
    await watched.look()
    assert await watched.state(one) is OperationState.QUEUED
    # As a gateway writes it, without a word to this dispatcher.
    document = parts.database.collections["hosts"][HOST]
    parts.database.write("hosts", {**document, "admission": Admission.OPEN})
    await watched.look()
    assert await watched.state(one) is OperationState.DISPATCHED
