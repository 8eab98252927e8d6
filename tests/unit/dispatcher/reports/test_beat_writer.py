"""Heartbeats that tell of tainted devices: each begin and each end is told once."""

from collections.abc import Iterable

import pytest

from dispatcher.reports.beat_writer import BeatWriter
from modelyard.contract.capacity.offers import DeviceReading, DeviceTaint
from modelyard.contract.messages import Event, Heartbeat
from tests.support.dispatcher.parts import HOST, INCARNATION, DispatcherParts

TAINT = DeviceTaint(memory=7, job_id="gone")
BEGUN, OVER = "host.device_tainted", "host.device_untainted"


class Beats:
    """A writer of heartbeats, and what it tells."""

    def __init__(self) -> None:
        self.parts = DispatcherParts()
        self.writer = self.another()
        self.events: list[Event] = []
        note = self.parts.event_log.note

        def noted(events: Iterable[Event]) -> None:
            some = list(events)
            self.events += some
            note(some)

        self.parts.event_log.note = noted  # type: ignore[method-assign]

    def another(self) -> BeatWriter:
        return BeatWriter(self.parts.store, self.parts.event_log, self.parts.scheduler)

    async def beat(
        self, *tainted: str, incarnation: str = INCARNATION, host: str = HOST
    ) -> list[str]:
        """Write a heartbeat of a host with these tainted devices; return the types of events."""
        del self.events[:]
        readings = tuple(
            DeviceReading(uuid=uuid, memory_used=9, tainted=TAINT if uuid in tainted else None)
            for uuid in ("a", "b")
        )
        beat = Heartbeat(host_id=host, incarnation=incarnation, devices=readings)
        await self.writer.write({host: beat})
        return [one.type for one in self.events]


@pytest.fixture
async def beats() -> Beats:
    made = Beats()
    await made.parts.begin()
    return made


async def test_a_taint_is_told_as_it_begins_and_as_it_ends(beats: Beats) -> None:
    assert await beats.beat() == []
    assert await beats.beat("a") == [BEGUN]
    (event,) = beats.events
    assert event.host_id == HOST
    assert event.detail == {"incarnation": INCARNATION, "uuid": "a", "bytes": 7, "job_id": "gone"}
    assert await beats.beat("a") == []
    assert await beats.beat("a", "b") == [BEGUN]
    assert await beats.beat() == [OVER, OVER]
    assert {one.detail["uuid"] for one in beats.events} == {"a", "b"}
    assert len({one.event_id for one in beats.events}) == 2


async def test_hosts_in_memory_have_the_taint_at_once(beats: Beats) -> None:
    await beats.parts.fleet.hosts()
    await beats.beat("a")
    assert (await beats.parts.fleet.hosts())[HOST].taints == {"a": TAINT}


async def test_what_waits_is_scheduled_when_a_device_is_free_again(beats: Beats) -> None:
    await beats.beat("a")
    assert not beats.parts.scheduler._waiting_woken
    await beats.beat()
    assert beats.parts.scheduler._waiting_woken


async def test_the_next_leader_tells_nothing_that_was_told(beats: Beats) -> None:
    await beats.beat("a")
    beats.writer = beats.another()
    assert await beats.beat("a") == []
    assert await beats.beat() == [OVER]


async def test_another_incarnation_tells_nothing(beats: Beats) -> None:
    assert await beats.beat("a", incarnation="earlier") == []
    assert await beats.beat() == []


async def test_a_heartbeat_of_a_lost_host_is_dropped_and_tells_nothing(beats: Beats) -> None:
    database = beats.parts.database
    database.write("hosts", {**database.collections["hosts"][HOST], "liveness": "LOST"})
    assert await beats.beat("a") == []


async def test_a_host_that_was_deleted_is_forgotten(beats: Beats) -> None:
    await beats.beat("a")
    beats.writer.forget([HOST])
    assert beats.writer._taints == {}
    assert await beats.beat("a") == []  # the record has it


async def test_nothing_is_kept_of_hosts_that_are_not_recorded(beats: Beats) -> None:
    assert await beats.beat("a", host="made-up") == []
    assert beats.writer._taints == {}
