"""A worker's boot, and what the dispatcher keeps in memory of its host."""

import asyncio

from dispatcher.control import ControlPublisher
from dispatcher.maintenance.orphans import Orphans
from dispatcher.maintenance.reconciler import BootReport, InventoryReport, Reconciler
from dispatcher.maintenance.retries import Retries
from modelyard.contract.capacity.local_content import LocalContent
from modelyard.contract.messages import EngineFacts, HostOnline, Inventory
from modelyard.store.deleting.deletions import Fate
from modelyard.store.records import HostRecord
from tests.support.dispatcher.parts import DispatcherParts

OTHER = "h2"
ONLINE = HostOnline(slots=1, engine=EngineFacts(version="20.10", api_version="1.41"))
LOCAL = LocalContent(images=("docker.io/library/x:latest",))


async def test_what_a_host_has_at_hand_is_recorded_again_after_it_was_deleted() -> None:
    parts = DispatcherParts()
    await parts.begin()
    hosts = parts.store.hosts
    running = asyncio.create_task(parts.event_log.run())
    control = ControlPublisher(parts.broker)
    retries = Retries(parts.store, parts.event_log, parts.scheduler, max_attempts=3)
    reconciler = Reconciler(
        parts.store, parts.event_log, parts.scheduler, control, retries, Orphans(grace_s=1)
    )

    async def boot(incarnation: str) -> HostRecord:
        await reconciler.handle_boot(BootReport(OTHER, incarnation, ONLINE))
        look = InventoryReport(OTHER, incarnation, Inventory(local=LOCAL))
        await reconciler.handle_inventories([look])
        (host,) = await hosts.all([OTHER])
        return host

    assert (await boot("one")).images == set(LOCAL.images)
    for moving in (hosts.suspect_silent, hosts.lose_silent):
        await moving(after_s=-60)
    assert (await parts.store.deletions.host(OTHER)).fate is Fate.DELETED
    assert (await boot("two")).images == set(LOCAL.images)
    running.cancel()
    await asyncio.wait([running])
