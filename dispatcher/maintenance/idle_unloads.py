"""Idle unloads: models that nobody has used for as long as their entry says leave memory."""

import asyncio
import math
from collections.abc import Sequence
from datetime import datetime

import structlog

from dispatcher.leadership import Term
from dispatcher.scheduling.lines import Lines
from dispatcher.scheduling.scheduler import Scheduler
from dispatcher.scheduling.system_operations import period, record_in_front, system_operation
from modelyard.contract.errors import StoreUnavailableError
from modelyard.contract.states import SystemReason, Verb
from modelyard.process.crash_points import crash_point
from modelyard.scheduling.leaving import is_idle
from modelyard.store import Store
from modelyard.store.records import JobRecord, NewOperation

log = structlog.get_logger(__name__)

INTERVAL_S = 0.5


class IdleUnloads:
    """Puts an UNLOAD before an idle job; like every operation it may fail, and is tried again."""

    def __init__(self, store: Store, scheduler: Scheduler, term: Term, lines: Lines) -> None:
        self._store = store
        self._scheduler = scheduler
        self._term = term
        self._lines = lines
        self._usage = lines.usage

    async def run(self) -> None:
        """Look every `INTERVAL_S` seconds until cancelled; raises `NotLeadingError`."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            self._term.check()
            try:
                await self.unload()
            except StoreUnavailableError as error:
                log.warning("idle_unloads.store_unavailable", error=str(error))

    async def unload(self) -> None:
        """Have idle models unloaded; raises `StoreUnavailableError`."""
        jobs = await self._store.jobs.idle_unloading()
        if not jobs:
            return
        read = await self._lines.read([job.job_id for job in jobs])
        busy = {line.job.job_id for line in read.lines if line.operations} | read.moved
        now = await self._store.time()
        idle: list[JobRecord] = []
        for job in jobs:
            if job.job_id in busy:
                self._usage.busy(job.job_id)
            elif await self._is_idle(job, now):
                idle.append(job)
        await self._record([job for job in idle if self._is_as_read(job)], now)

    def _is_as_read(self, job: JobRecord) -> bool:
        """Tell whether a job is as it was read, and nothing has come into its line since."""
        line = self._lines.line(job.job_id)
        return line is not None and not line.operations and line.job.version == job.version

    async def _record(self, idle: Sequence[JobRecord], now: datetime) -> None:
        unloads: list[NewOperation] = []
        for job in idle:
            log.info("model.idle", job_id=job.job_id, host_id=job.host_id)
            key = f"idle/{job.version}/{period(now)}"
            unloads.append(system_operation(job, Verb.DEPLOY_UNLOAD, key, SystemReason.IDLE))
        if not unloads:
            return
        await record_in_front(self._store, unloads)
        crash_point("dispatcher.idle.after_unload")
        for one in unloads:
            # If it fails, the model has the whole time again.
            self._usage.note(one.job_id or "")
        self._scheduler.wake(one.job_id for one in unloads if one.job_id)

    async def _is_idle(self, job: JobRecord, now: datetime) -> bool:
        if not is_idle(job, now, unused_s=math.inf):
            return False  # how long it was not used need not be read
        idle_s = self._usage.idle_s(job.job_id)
        if idle_s is None:
            last = await self._store.operation_queries.last_end(job.job_id)
            since = max(one for one in (last, job.loaded_at, job.created_at) if one is not None)
            idle_s = max(0.0, (now - since).total_seconds())
            self._usage.note(job.job_id, ago_s=idle_s)
        return is_idle(job, now, unused_s=idle_s)
