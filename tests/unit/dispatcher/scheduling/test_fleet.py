"""The hosts in memory: read once, and again before their next use when they have changed."""

import asyncio

import pytest

from dispatcher.scheduling.fleet import Fleet
from modelyard.contract.capacity.footprints import NOTHING_LEARNED
from modelyard.contract.capacity.ledger import Allocation
from modelyard.contract.errors import StoreUnavailableError
from modelyard.contract.states import Admission
from modelyard.scheduling.fitting import PlacementRequest
from modelyard.scheduling.placement import Placed, Unplaced
from modelyard.store.deleting.deletions import Fate
from modelyard.store.records import HostRecord, reservations_of
from tests.fakes.broker_links import Call
from tests.support.dispatcher.parts import HOST, DispatcherParts

OTHER = "h0"
"""Comes before `HOST` by name."""


@pytest.fixture
async def parts() -> DispatcherParts:
    made = DispatcherParts()
    await made.begin()
    return made


async def admissions(fleet: Fleet) -> dict[str, Admission]:
    return {host_id: host.admission for host_id, host in (await fleet.hosts()).items()}


async def test_hosts_are_read_once(parts: DispatcherParts) -> None:
    first = await parts.fleet.hosts()
    reads = parts.link.calls[Call.READ]
    assert await parts.fleet.hosts() == first
    assert parts.link.calls[Call.READ] == reads


async def test_a_host_that_this_process_writes_is_read_again(parts: DispatcherParts) -> None:
    await parts.fleet.hosts()
    await parts.store.hosts.admit(HOST, Admission.CORDONED)
    assert await admissions(parts.fleet) == {HOST: Admission.CORDONED}


async def test_only_what_is_marked_is_read_until_all_hosts_are(parts: DispatcherParts) -> None:
    await parts.come_online(OTHER)
    fleet = Fleet(parts.store)  # nobody marks the hosts of this one, as when a gateway writes
    await fleet.hosts()
    for host_id in (HOST, OTHER):
        await parts.store.hosts.admit(host_id, Admission.CORDONED)
    fleet.mark([HOST])
    assert await admissions(fleet) == {OTHER: Admission.OPEN, HOST: Admission.CORDONED}
    await fleet.refresh()
    assert await admissions(fleet) == {OTHER: Admission.CORDONED, HOST: Admission.CORDONED}


@pytest.mark.parametrize("marked", [True, False])
async def test_a_host_that_was_deleted_is_gone_once_it_is_looked_for(
    parts: DispatcherParts, *, marked: bool
) -> None:
    await parts.come_online(OTHER)
    fleet, gone = Fleet(parts.store), list[str]()
    fleet.when_gone(gone.extend)
    assert list(await fleet.hosts()) == [OTHER, HOST]
    for moving in (parts.store.hosts.suspect_silent, parts.store.hosts.lose_silent):
        await moving(after_s=-60)
    assert (await parts.store.deletions.host(OTHER)).fate is Fate.DELETED
    if marked:
        fleet.mark([OTHER])
    else:
        await fleet.refresh()
    assert list(await fleet.hosts()) == [HOST]
    assert gone == [OTHER]


async def test_a_new_host_comes_to_its_place_by_name(parts: DispatcherParts) -> None:
    await parts.fleet.hosts()
    await parts.come_online(OTHER)
    assert list(await parts.fleet.hosts()) == [OTHER, HOST]


@pytest.mark.parametrize("known", [False, True])
async def test_a_read_that_fails_is_made_again(parts: DispatcherParts, *, known: bool) -> None:
    if known:
        await parts.fleet.hosts()
        await parts.store.hosts.admit(HOST, Admission.CORDONED)
    parts.link.fates.append("lost_before")
    with pytest.raises(StoreUnavailableError):
        await parts.fleet.hosts()
    assert await admissions(parts.fleet) == {HOST: Admission.CORDONED if known else Admission.OPEN}


async def test_a_host_that_changes_while_it_is_read_is_read_again(parts: DispatcherParts) -> None:
    await parts.fleet.hosts()
    parts.fleet.mark([HOST])
    parts.link.hold()
    reading = asyncio.create_task(parts.fleet.hosts())
    await parts.link.held.wait()
    parts.link.let_go()
    await parts.store.hosts.admit(HOST, Admission.CORDONED)
    await reading
    assert await admissions(parts.fleet) == {HOST: Admission.CORDONED}


async def test_whoever_asks_while_a_host_is_read_gets_what_is_read(parts: DispatcherParts) -> None:
    await parts.fleet.hosts()
    await parts.store.hosts.admit(HOST, Admission.CORDONED)
    parts.link.hold()
    first = asyncio.create_task(parts.fleet.hosts())
    await parts.link.held.wait()
    second = asyncio.create_task(admissions(parts.fleet))
    parts.link.let_go()
    await first
    assert await second == {HOST: Admission.CORDONED}


async def reserved(parts: DispatcherParts, job_id: str) -> HostRecord:
    """Reserve a slot for a job, and note it in memory; return what memory had before."""
    before = (await parts.fleet.hosts())[HOST]
    wanted = [Allocation(job_id=job_id, generation=1)]
    assert await parts.store.hosts.reserve(before, wanted, token="t")
    parts.fleet.replace(before, before.with_reserved(reservations_of(wanted, "t")))
    return before


async def test_a_reservation_that_is_noted_costs_no_read(parts: DispatcherParts) -> None:
    await reserved(parts, "j2")
    reads = parts.link.calls[Call.READ]
    now = (await parts.fleet.hosts())[HOST]
    assert parts.link.calls[Call.READ] == reads
    assert [now] == await parts.store.hosts.all()
    assert now.room != (await parts.fleet.hosts())[HOST].total, "it has less room than if empty"


async def test_a_reservation_beside_another_change_has_the_host_read(
    parts: DispatcherParts,
) -> None:
    before = await reserved(parts, "j2")
    parts.fleet.replace(before, before)
    assert [(await parts.fleet.hosts())[HOST]] == await parts.store.hosts.all()


async def test_a_reservation_that_is_noted_while_the_host_is_read_is_not_lost(
    parts: DispatcherParts,
) -> None:
    await parts.fleet.hosts()
    parts.link.hold()
    reading = asyncio.create_task(parts.fleet.refresh())
    await parts.link.held.wait()
    reserving = asyncio.create_task(reserved(parts, "j2"))
    await asyncio.sleep(0)
    parts.link.let_go()
    await asyncio.gather(reading, reserving)
    assert [(await parts.fleet.hosts())[HOST]] == await parts.store.hosts.all()


async def decided(parts: DispatcherParts) -> Placed | Unplaced:
    """Place a job that needs a slot, by the hosts in memory."""
    hosts = await parts.fleet.hosts()
    capacity = parts.fleet.capacity_of(hosts, lambda _: (), lambda _: NOTHING_LEARNED)
    return capacity.place(PlacementRequest())


async def test_a_decision_goes_by_a_host_as_it_is_now(parts: DispatcherParts) -> None:
    assert isinstance(await decided(parts), Placed)
    await parts.store.hosts.admit(HOST, Admission.CORDONED)
    assert await decided(parts) == Unplaced(("1 host is CORDONED",))


async def test_a_decision_goes_by_a_reservation_that_is_noted(parts: DispatcherParts) -> None:
    for number in range(4):
        assert isinstance(await decided(parts), Placed)
        await reserved(parts, f"j{number}")
    assert await decided(parts) == Unplaced(("1 host has no free slot",))
