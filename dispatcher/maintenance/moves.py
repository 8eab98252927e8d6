"""Relocations: a live job gets a container on another host and then switches over to it.

The job stays in use on its old host meanwhile. The steps, each recorded before the next one starts:
reserve on the new host, record the move, create there, load there, switch the job over. The old
container then belongs to an earlier generation: after the next inventory report of its host, and
after the inferences that still run in it, the worker discards it. The operations of a move are
marked `aside`: they are never in the job's line.

What a crash leaves behind:

- after reserve: no job owns the reservation; the sweep frees it;
- after the move is recorded, or a step has ended: the next round continues from the record;
- after the switch: the job does not own the old reservation any more; the sweep frees it.

If the job changes meanwhile, the move is given up: every write compares the job's version.
"""

import uuid
from collections.abc import Sequence
from dataclasses import replace

import structlog

from dispatcher.control import ControlPublisher
from dispatcher.events import EventLog, observed_event, operation_event
from dispatcher.maintenance.cancels import tell_to_cancel
from dispatcher.maintenance.retries import Retries
from dispatcher.scheduling.commands import CommandPublisher
from dispatcher.scheduling.scheduler import Scheduler
from dispatcher.scheduling.system_operations import system_operation
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.retries import is_retried
from modelyard.contract.states import (
    Admission,
    JobState,
    Liveness,
    OperationState,
    SystemReason,
    Verb,
)
from modelyard.process.crash_points import crash_point
from modelyard.scheduling.fitting import PlacementRequest
from modelyard.scheduling.placement import BEHIND_ALL, FreeCapacity, Unplaced
from modelyard.store import Store
from modelyard.store.operation_writes import DispatchClaim
from modelyard.store.operations import QueuedEnding
from modelyard.store.records import (
    HostRecord,
    JobRecord,
    NewOperation,
    OperationRecord,
    RelocationRecord,
)

log = structlog.get_logger(__name__)

LIMIT = 100
MOST_FAILURES = 3
"""How many moves of a job may fail in a row before the job stays where it is."""


class Relocations:
    """A repair of the sweep: moves the jobs of hosts that are drained with `move`."""

    def __init__(
        self,
        store: Store,
        event_log: EventLog,
        *,
        scheduler: Scheduler,
        commands: CommandPublisher,
        control: ControlPublisher,
        retries: Retries,
    ) -> None:
        self._store = store
        self._event_log = event_log
        self._scheduler = scheduler
        self._commands = commands
        self._control = control
        self._retries = retries

    async def go_on(self) -> None:
        """Continue all moves and begin those that are due; raises `StoreUnavailableError`."""
        moving = await self._store.jobs.moving(limit=LIMIT)
        if not moving and not any(map(_is_cleared, await self._store.hosts.draining())):
            return
        hosts = await self._store.hosts.all()
        for job in moving:
            if job.move is not None:
                await self._step(job, job.move, hosts)
        for host in hosts:
            if _is_cleared(host) and host.liveness is Liveness.ONLINE:
                await self._begin_all(host, hosts)

    async def _begin_all(self, host: HostRecord, hosts: Sequence[HostRecord]) -> None:
        learned = await self._scheduler.learned()
        capacity = self._scheduler.free_capacity({one.host_id: one for one in hosts}, learned)
        for job in await self._store.jobs.on_host(host.host_id):
            movable = job.state.live and job.move is None and job.move_failures < MOST_FAILURES
            if movable and await self._at_rest(job):
                await self._begin(job, capacity)

    async def _at_rest(self, job: JobRecord) -> bool:
        """Tell whether no operation is changing the job; inferences do not change it."""
        if job.recovery is not None:
            return False
        if job.current is None:
            return True
        current = await self._store.operation_queries.get(job.current.operation_id)
        return current is None or current.state.terminal

    async def _begin(self, job: JobRecord, capacity: FreeCapacity) -> None:
        if job.spec is None:
            return
        request = PlacementRequest.of(
            job,
            job.spec,
            capacity.learned(job.spec),
            at_once=job.state is JobState.LOADED,
            dataset=job.dataset_spec,
        )
        # It goes behind all that waits, and keeps nothing from the other moves.
        chosen = capacity.place(replace(request, rank=BEHIND_ALL, awaits=False))
        if isinstance(chosen, Unplaced):
            log.info("move.no_room", job_id=job.job_id, reasons=chosen.reasons)
            return
        there, allocation = chosen.host, chosen.allocation
        move = RelocationRecord(
            host_id=there.host_id,
            generation=allocation.generation,
            state=job.state,
            devices=allocation.devices,
        )
        token = uuid.uuid4().hex
        if not await self._store.hosts.reserve(there, [allocation], token=token):
            return
        self._store.changes.written(hosts=[there.host_id])
        crash_point("dispatcher.move.after_reserve")
        if await self._store.jobs.begin_move(job, move):
            crash_point("dispatcher.move.after_begin")
            log.info("move.begun", job_id=job.job_id, to=move.host_id, generation=move.generation)
            moving = job.model_copy(update={"move": move})
            await self._dispatch(moving, move, Verb.DEPLOY_CREATE, there, None)
        else:
            await self._store.hosts.release_token(there.host_id, [job.job_id], token=token)

    async def _step(
        self, job: JobRecord, move: RelocationRecord, hosts: Sequence[HostRecord]
    ) -> None:
        """Continue a move from its recorded state, or give it up."""
        there = next((one for one in hosts if one.host_id == move.host_id), None)
        lost = there is None or there.liveness is Liveness.LOST
        if lost or _is_unwanted(job, move, there):
            await self._give_up(job, move, failures=int(lost))
        elif there is not None and there.liveness is Liveness.ONLINE:
            await self._step_to(job, move, there)

    async def _step_to(self, job: JobRecord, move: RelocationRecord, there: HostRecord) -> None:
        """Dispatch the next operation of the move, or switch over once the last has succeeded."""
        verbs = [Verb.DEPLOY_CREATE]
        if move.state is JobState.LOADED:
            verbs.append(Verb.DEPLOY_LOAD)
        leg: OperationRecord | None = None
        for verb in verbs:
            leg = await self._store.operation_queries.get(_step_operation_id(job, move, verb))
            if leg is None or leg.state is OperationState.QUEUED:
                await self._dispatch(job, move, verb, there, leg)
                return
            if not leg.state.terminal:
                return
            if leg.state is not OperationState.SUCCEEDED:
                log.warning("move.failed", job_id=job.job_id, verb=verb, error=leg.error)
                final = _is_final(leg, verb)
                await self._give_up(job, move, failures=MOST_FAILURES if final else 1)
                return
        if leg is not None and await self._at_rest(job):
            await self._take_over(job, move, leg)

    async def _dispatch(
        self,
        job: JobRecord,
        move: RelocationRecord,
        verb: Verb,
        host: HostRecord,
        leg: OperationRecord | None,
    ) -> None:
        """Dispatch one operation of a move to its host; `leg` is its record, if it has one."""
        new = _operation_of(job, move, verb)
        await self._store.operations.record([new])
        crash_point("dispatcher.move.after_record")
        claimed = await self._store.operations.claim(
            [
                DispatchClaim(
                    leg or new.queued(), move.host_id, host.incarnation or "", move.generation
                )
            ],
            token=uuid.uuid4().hex,
        )
        crash_point("dispatcher.move.after_claim")
        await self._commands.publish(claimed, {job.job_id: job})
        await self._event_log.publish([operation_event(one) for one in claimed])

    async def _take_over(
        self, job: JobRecord, move: RelocationRecord, leg: OperationRecord
    ) -> None:
        if not await self._store.jobs.arrive(job, move, leg):
            return
        crash_point("dispatcher.move.after_arrive")
        log.info("move.done", job_id=job.job_id, from_host=job.host_id, to=move.host_id)
        if job.host_id is not None:
            await self._store.hosts.release({job.host_id: [(job.job_id, job.generation)]})
        self._scheduler.wake([job.job_id])
        moved = observed_event(job, job.state, None, move.host_id).model_copy(
            update={
                "type": "job.moved",
                "event_id": f"job:{job.job_id}:{move.generation}:moved",
                "generation": move.generation,
                "container_id": leg.container_id,
                "detail": {"from": job.host_id},
            }
        )
        await self._event_log.publish([moved])

    async def _give_up(self, job: JobRecord, move: RelocationRecord, *, failures: int) -> None:
        """End the operations of a move that is unwanted or impossible; free its reservation."""
        for verb in (Verb.DEPLOY_CREATE, Verb.DEPLOY_LOAD):
            leg = await self._store.operation_queries.get(_step_operation_id(job, move, verb))
            if leg is not None and not leg.state.terminal:
                await self._end(leg)
        crash_point("dispatcher.move_given_up.after_legs")
        if await self._store.jobs.end_move(job, failures=failures):
            crash_point("dispatcher.move_given_up.after_end")
            await self._store.hosts.release({move.host_id: [(job.job_id, move.generation)]})
            self._scheduler.wake_waiting()

    async def _end(self, leg: OperationRecord) -> None:
        error = ErrorInfo.of(ErrorCode.CANCELLED, "The move that it belonged to was given up.")
        if leg.state is OperationState.QUEUED:
            ended = await self._store.operations.end_queued(
                [QueuedEnding(leg, OperationState.CANCELLED, error)],
                token=uuid.uuid4().hex,
            )
            await self._event_log.publish([operation_event(one) for one in ended])
            return
        await tell_to_cancel(self._control, [leg], "stale")
        await self._retries.end(leg, error, OperationState.CANCELLED)


def _is_cleared(host: HostRecord) -> bool:
    """Tell whether the jobs of a host are to move elsewhere."""
    return host.admission is Admission.DRAINING and host.drain is not None and host.drain.move


def _is_unwanted(job: JobRecord, move: RelocationRecord, there: HostRecord | None) -> bool:
    """Tell whether the job has changed since the move began, or its new host is draining too."""
    if job.state is not move.state or job.host_id is None or job.recovery is not None:
        return True
    return there is not None and there.admission is Admission.DRAINING


def _is_final(leg: OperationRecord, verb: Verb) -> bool:
    """Tell whether an operation of the move failed for a reason that would fail every move."""
    if leg.state is not OperationState.FAILED or leg.error is None:
        return False
    return not is_retried(verb, leg.error.code)


def _step_operation_id(job: JobRecord, move: RelocationRecord, verb: Verb) -> str:
    return _operation_of(job, move, verb).operation_id


def _operation_of(job: JobRecord, move: RelocationRecord, verb: Verb) -> NewOperation:
    made = system_operation(job, verb, f"move/{move.generation}", SystemReason.MOVE)
    return made.model_copy(update={"aside": True})
