"""Models in memory that were learned to take more than their jobs hold on their devices.

The sweep raises what they hold where there is room. Where there is none nothing is changed: what
is measured of the device keeps others away, and the next load needs the larger amount.
"""

import structlog

from dispatcher.scheduling.memory import Memory
from modelyard.contract.capacity.ledger import ResidentAllocation
from modelyard.contract.capacity.needs import ResidentNeed, resident_need
from modelyard.contract.states import JobState, Liveness
from modelyard.scheduling.placement import LearnedOf
from modelyard.store import Store
from modelyard.store.records import HostRecord, JobRecord, Reservation

log = structlog.get_logger(__name__)


class GrownResidents:
    """A repair of the sweep."""

    def __init__(self, store: Store, memory: Memory) -> None:
        self._store = store
        self._fleet = memory.fleet
        self._lines = memory.lines
        self._footprints = memory.footprints

    async def raise_held(self) -> None:
        """Let models hold what they were learned to take; raises `StoreUnavailableError`."""
        await self._footprints.refresh_if_old()
        learned = await self._footprints.learned()
        for host in list((await self._fleet.hosts()).values()):
            if host.liveness is Liveness.ONLINE:
                await self._raise_on(host, learned)

    async def _raise_on(self, host: HostRecord, learned: LearnedOf) -> None:
        held = {one.job_id: one for one in host.reservations if one.resident}
        on_devices = [
            job_id for job_id, one in held.items() if one.resident and one.resident.devices
        ]
        if not on_devices:
            return
        for job in [line.job for line in (await self._lines.read(on_devices)).lines]:
            one = held[job.job_id]
            if job.spec is None or not _is_loaded(job, one) or one.resident is None:
                continue
            raised = _raised(host, one.resident, resident_need(job.spec, learned(job.spec)))
            if raised is not None and await self._store.hosts.raise_resident(
                host, job.job_id, one.generation, raised
            ):
                log.info(
                    "resident.raised",
                    job_id=job.job_id,
                    host_id=host.host_id,
                    devices=raised.devices,
                )


def _is_loaded(job: JobRecord, held: Reservation) -> bool:
    return job.state is JobState.LOADED and job.generation == held.generation


def _raised(
    host: HostRecord, resident: ResidentAllocation, need: ResidentNeed
) -> ResidentAllocation | None:
    """Return what a model should hold; None if that is no more than now, or there is no room."""
    devices = dict(resident.devices)
    for uuid, held in resident.devices.items():
        device = host.total.devices.get(uuid)
        amount = need.on(device.model) if device is not None else None
        if device is None or amount is None or amount <= held or uuid in host.taints:
            continue
        if host.held_on_devices[uuid] - held + amount > device.memory:
            return None
        devices[uuid] = amount
    if devices == resident.devices:
        return None
    return resident.model_copy(update={"devices": devices})
