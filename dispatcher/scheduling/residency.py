"""Residents: brings models into memory for inferences that ask for them, and makes room.

If a job's model has no room where its container is, but has some elsewhere, a CREATE at the front
of the line brings the unloaded job there before the LOAD.

A LOAD or UNLOAD that Modelyard decides on is an ordinary operation at the front of its job's line,
with its reason. Nothing that works is interrupted: an UNLOAD takes effect when the inferences that
run have ended, and those that wait behind it load the model again. What a crash leaves behind: the
operation is recorded, or it is not, and then the next pass decides anew.
"""

import asyncio
import time
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

import structlog

from dispatcher.scheduling.making_room import KeptRoom, Way, decide, hosts_for, residents_of
from dispatcher.scheduling.memory import Memory
from dispatcher.scheduling.system_operations import period, record_in_front, system_operation
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.states import OperationState, SystemReason, Verb
from modelyard.process.crash_points import crash_point
from modelyard.scheduling.leaving import is_leaving
from modelyard.scheduling.ordering import LoadFirst
from modelyard.scheduling.placement import Kept, Placed
from modelyard.scheduling.planning import Crowded
from modelyard.store import Store
from modelyard.store.operations import BEFORE_THE_FRONT, QueuedEnding
from modelyard.store.records import OperationRecord

log = structlog.get_logger(__name__)

MOST_AT_ONCE = 50
"""Operations for which one pass makes room."""


class Residents:
    """Loads models on demand, and unloads idle ones that others need the place of."""

    def __init__(self, store: Store, memory: Memory, *, swap_wait_s: float) -> None:
        """After `swap_wait_s` seconds of waiting also models that are in use make room."""
        self._store = store
        self._lines = memory.lines
        self._fleet = memory.fleet
        self._usage = memory.lines.usage
        self._swap_wait_s = swap_wait_s
        self._kept = KeptRoom(time.monotonic, memory.lines.agree)

    async def load_first(self, wanted: Sequence[LoadFirst]) -> list[QueuedEnding]:
        """Put a LOAD before each of these inferences; return those whose LOAD has failed.

        Raises `StoreUnavailableError`.
        """
        loads = {
            one.operation.operation_id: system_operation(
                one.job,
                Verb.DEPLOY_LOAD,
                f"on_demand/{one.operation.operation_id}/{one.job.version}",
                SystemReason.ON_DEMAND.about(one.operation.operation_id),
            )
            for one in wanted
        }
        failed = await self._store.operation_queries.failed_loads(list(loads))
        await record_in_front(
            self._store, [load for key, load in loads.items() if key not in failed]
        )
        crash_point("dispatcher.residency.after_load")
        return [
            QueuedEnding(one.operation, OperationState.REJECTED, _not_loaded(failed[key]))
            for one in wanted
            if (key := one.operation.operation_id) in failed
        ]

    async def make_room(self, crowded: Sequence[Crowded]) -> set[str]:
        """Have models unloaded so that these operations can start; return the jobs to schedule.

        Raises `StoreUnavailableError`.
        """
        woken: set[str] = set()
        if not crowded:
            return woken
        hosts = await self._fleet.hosts()
        now = await self._store.time()
        tries = 0
        for one in crowded:
            await asyncio.sleep(0)
            there = [
                (host, (await self._lines.read(residents_of(host, besides=one))).lines)
                for host in hosts_for(one, hosts)
            ]
            decision = decide(one, there, now, swap_wait_s=self._swap_wait_s, usage=self._usage)
            self._kept.follow(one, decision)
            if decision.elsewhere is not None:
                woken.add(await self._relocate(one, decision.elsewhere, now))
                tries += 1
            elif decision.way is not None:
                woken |= await self._evict(one, decision.way, now)
                tries += bool(decision.way.jobs)
            if tries == MOST_AT_ONCE:
                break
        return woken

    def give_up(self, job_ids: Iterable[str]) -> None:
        """Keep nothing for jobs any more that could not start if models left memory."""
        for job_id in job_ids:
            self._kept.give_up(job_id)

    def waiting_on(self, host_ids: Collection[str]) -> list[str]:
        """Return jobs that wait until models on some hosts are not in use any more."""
        return self._kept.waiting_on(host_ids)

    def kept(self, host_id: str) -> list[Kept]:
        """Return what is being cleared for operations on a host."""
        return self._kept.on(host_id)

    async def _evict(self, one: Crowded, way: Way, now: datetime) -> set[str]:
        operation = one.operation
        key = f"evict/{operation.operation_id}/{period(now)}"
        read = await self._lines.read(way.jobs)
        leaving = [line.job for line in read.lines if not is_leaving(line)]
        await record_in_front(
            self._store,
            [
                system_operation(
                    job,
                    Verb.DEPLOY_UNLOAD,
                    f"{key}/{job.version}",
                    SystemReason.EVICTED_FOR.about(operation.operation_id),
                )
                for job in leaving
            ],
        )
        crash_point("dispatcher.residency.after_unload")
        for job in leaving:
            self._kept.give_up(job.job_id)
            log.info(
                "model.evicted",
                job_id=job.job_id,
                host_id=way.host_id,
                evicted_for=operation.operation_id,
            )
        return {job.job_id for job in leaving}

    async def _relocate(self, one: Crowded, elsewhere: Placed, now: datetime) -> str:
        """Put a CREATE before a LOAD that has no room; return its job.

        The pass that dispatches it chooses the place anew: what is kept there is kept for this job.
        """
        job_id, operation_id = one.request.job_id, one.operation.operation_id
        for line in (await self._lines.read([job_id])).lines:
            if not line.operations or line.operations[0].operation_id != operation_id:
                break
            key = f"relocate/{operation_id}/{line.job.version}/{period(now)}"
            create = system_operation(
                line.job, Verb.DEPLOY_CREATE, key, SystemReason.RELOCATED_FOR.about(operation_id)
            )
            await record_in_front(self._store, [create], shift=BEFORE_THE_FRONT)
            crash_point("dispatcher.residency.after_create")
            log.info(
                "job.to_be_relocated",
                job_id=job_id,
                from_host=one.host_id,
                to=elsewhere.host.host_id,
                relocated_for=operation_id,
            )
        return job_id


def _not_loaded(load: OperationRecord) -> ErrorInfo:
    """Return why an inference is rejected whose LOAD did not succeed."""
    error = load.error or ErrorInfo.of(ErrorCode.LOAD_FAILED)
    message = f"The model could not be loaded for it: {error.message}"
    return ErrorInfo(code=error.code, message=message, detail={"load": load.operation_id})
