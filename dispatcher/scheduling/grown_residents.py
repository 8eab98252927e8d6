"""Models in memory that were learned to take more than their jobs hold on their devices.

The sweep raises what they hold where there is room. Where there is none nothing is changed: what
is measured of the device keeps others away, and the next load needs the larger amount. Each round
looks at the next few of them: in a large fleet most jobs are not in memory here.
"""

from heapq import nsmallest

import structlog

from dispatcher.scheduling.memory import Memory
from modelyard.contract.capacity.ledger import ResidentAllocation
from modelyard.contract.capacity.needs import ResidentNeed, resident_need
from modelyard.contract.states import JobState, Liveness
from modelyard.scheduling.placement import LearnedOf
from modelyard.store import Store
from modelyard.store.records import HostRecord, JobRecord, Reservation

log = structlog.get_logger(__name__)

JOBS_IN_A_ROUND = 200
"""Most jobs that one round looks at."""


class GrownResidents:
    """A repair of the sweep."""

    def __init__(self, store: Store, memory: Memory) -> None:
        self._store = store
        self._fleet = memory.fleet
        self._lines = memory.lines
        self._footprints = memory.footprints
        self._after = ("", "")
        """The host and job that the last round came to."""

    async def raise_held(self) -> None:
        """Let some models hold what they were learned to take; raises `StoreUnavailableError`."""
        await self._footprints.refresh_if_old()
        learned = await self._footprints.learned()
        # Hosts in memory change while jobs are read. These stay as they are; writes are guarded.
        there = {
            (host.host_id, one.job_id): (host, one.resident)
            for host in (await self._fleet.hosts()).values()
            if host.liveness is Liveness.ONLINE
            for one in host.reservations
            if one.resident and one.resident.devices
        }
        page = nsmallest(JOBS_IN_A_ROUND, (key for key in there if key > self._after))
        self._after = page[-1] if len(page) == JOBS_IN_A_ROUND else ("", "")
        lines = await self._lines.read(job_id for _, job_id in page)
        jobs = {line.job.job_id: line.job for line in lines.lines}
        for key in page:
            job, (host, resident) = jobs.get(key[1]), there[key]
            if job is not None:
                await self._raise(host, job, resident, learned)

    async def _raise(
        self,
        host: HostRecord,
        job: JobRecord,
        resident: ResidentAllocation,
        learned: LearnedOf,
    ) -> None:
        if job.spec is None or not _is_loaded(job, host.held_by[job.job_id]):
            return
        raised = _raised(host, resident, resident_need(job.spec, learned(job.spec)))
        if raised is not None and await self._store.hosts.raise_resident(
            host, job.job_id, job.generation, raised
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
