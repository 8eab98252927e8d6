"""A fleet in memory that does what the dispatcher decides, at simulated times.

Everything that decides is the product's: order, placement, the ledger's sums, who makes room for
whom. What is simulated is the record and the workers. After each change it is checked, by rules
written down here once more, that nothing is given away twice, that no model is unloaded that has to
stay, and that whatever waits has a reason.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from itertools import chain, count, islice
from typing import TYPE_CHECKING

from bench.simulator.outcome import Outcome
from bench.simulator.rivals import CLOCK_S, CREATE_S, SWEEP_S, Rivals
from bench.simulator.rules import (
    BrokenRuleError,
    check_that_it_may_be_evicted,
    check_that_it_may_leave_idle,
    check_that_nothing_is_given_twice,
    host_record,
    never_makes_room,
    spec_of,
)
from dispatcher.maintenance.idle_unloads import INTERVAL_S
from dispatcher.scheduling.making_room import KeptRoom, decide, hosts_for, residents_of
from dispatcher.scheduling.usage import Usage
from modelyard.contract.states import JobState, OperationState, SystemReason, Verb
from modelyard.scheduling.leaving import is_idle, is_leaving
from modelyard.scheduling.ordering import CatalogEntries
from modelyard.scheduling.placement import FreeCapacity, PlacementPolicy
from modelyard.scheduling.planning import make_plan
from modelyard.scheduling.survey import Table
from modelyard.store.records import (
    JobLine,
    JobRecord,
    OperationRecord,
    Reservation,
    rank_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bench.simulator.scenario import Arrival, Scenario, SimulatedModel
    from modelyard.scheduling.planning import Crowded, PlannedDispatch
    from modelyard.store.records import HostRecord

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
TERMINATE_S, LOADED_ALREADY_S = 0.2, 0.05
PATIENCE_S = 600.0
"""Seconds after the last arrival by which something has to happen by itself."""
URGENT = 50
"""Most urgent operations without a host that join a pass, as in the scheduler."""
HEAD = 100
"""Operations at the head of a line that a pass looks at."""


class World:
    """One simulation."""

    def __init__(
        self, scenario: Scenario, *, policy: PlacementPolicy = PlacementPolicy.BINPACK
    ) -> None:
        self.outcome = Outcome()
        self._scenario = scenario
        self._policy = policy
        self._models = {one.spec.name: one for one in scenario.models}
        self._catalog = CatalogEntries({one.spec.name: one.spec for one in scenario.models}, {})
        self._now = 0.0
        self._numbers = count(1)
        images = {one.spec.image for one in scenario.models}
        self._hosts = {
            one.host_id: host_record(one, images if one.has_images else ())
            for one in scenario.hosts
        }
        self._table = Table(self._hosts.values())
        self._jobs: dict[str, JobRecord] = {}
        self._lines: dict[str, dict[str, OperationRecord]] = defaultdict(dict)
        self._arrivals: dict[str, Arrival] = {}
        self._usage = Usage(clock=lambda: self._now)
        self._kept = KeptRoom(lambda: self._now, self._still_waits)
        self._events: list[tuple[float, int, OperationRecord | str | None]] = []
        """Ends of operations, looks at jobs that may be idle, and sweeps, by their time."""
        self._used_at: dict[str, float] = {}
        self._over_at = max((one.at for one in scenario.arrivals), default=0.0) + PATIENCE_S
        self._rivals = Rivals(scenario)
        self._waiting: dict[str, set[str]] = defaultdict(set)
        """Jobs whose head waits for room, by their host; for any host under the empty name."""
        self._sweeps = False
        """True if the next sweep is among the events."""
        self._busy: Counter[str] = Counter()
        """What runs, by device."""
        self._busy_since: dict[str, float] = {}
        self._bounds_s: dict[str, float] = defaultdict(float)
        """Of loads whose jobs were relocated: how long they might have waited before that."""

    def run(self) -> Outcome:
        """Simulate until everything has ended; raises `BrokenRuleError`."""
        coming = iter(self._scenario.arrivals)
        arrival = next(coming, None)
        while arrival is not None or self._events:
            self.outcome.events += 1
            if self._events and (arrival is None or self._events[0][0] <= arrival.at):
                self._now, _, event = heapq.heappop(self._events)
                if event is None:
                    self._sweep()
                elif isinstance(event, str):
                    self._unload_if_idle(event)
                else:
                    self._end(event)
            elif arrival is not None:
                self._now = arrival.at
                self._arrive(arrival)
                arrival = next(coming, None)
        left = sum(map(len, self._lines.values()))
        if left:
            raise BrokenRuleError(f"{left} operations of {self._scenario.name} never started.")
        self.outcome.ends_at = self._now
        return self.outcome

    @property
    def _time(self) -> datetime:
        return BEGINNING + timedelta(seconds=self._now)

    def _arrive(self, arrival: Arrival) -> None:
        operation = self._operation(
            arrival.job_id, arrival.verb, priority=arrival.priority, model=arrival.model
        )
        self._jobs.setdefault(arrival.job_id, JobRecord(job_id=arrival.job_id))
        self._lines[arrival.job_id][operation.operation_id] = operation
        self._arrivals[operation.operation_id] = arrival
        self._schedule([arrival.job_id])

    def _operation(self, job_id: str, verb: Verb, **more: object) -> OperationRecord:
        number = next(self._numbers)
        fields = {
            "operation_id": f"op-{number}",
            "job_id": job_id,
            "verb": verb,
            "state": OperationState.QUEUED,
            "line": number,
            "has_input": verb is Verb.TEMP,
            "input_json": "1" if verb is Verb.TEMP else None,
            "accepted_at": self._time,
        }
        made = OperationRecord.model_validate(fields | more)
        return made.model_copy(update={"rank": rank_of(made.priority, self._time)})

    def _put_in_front(self, job_id: str, verb: Verb, reason: str, priority: int = 0) -> None:
        model = spec_of(self._jobs[job_id]).name
        operation = self._operation(
            job_id, verb, source="system", reason=reason, priority=priority, model=model
        )
        self._lines[job_id] = {operation.operation_id: operation, **self._lines[job_id]}

    def _line(self, job_id: str) -> JobLine:
        head = tuple(islice(self._lines[job_id].values(), HEAD))
        return JobLine(job=self._jobs[job_id], operations=head)

    def _schedule(self, woken: Iterable[str]) -> None:
        """Run passes, as the scheduler does, until there is nothing to decide any more."""
        jobs = list(dict.fromkeys(woken))
        for _ in range(1_000):
            if not jobs:
                return
            before, jobs = jobs, self._pass(jobs)
            for job_id in {*before} - {*jobs}:
                self._check_that_it_is_explained(job_id)
        raise BrokenRuleError(f"The passes over {jobs} never come to an end.")

    def _check_that_it_is_explained(self, job_id: str) -> None:
        line = self._lines[job_id].values()
        head = next(iter(line), None)
        works = any(one.state is OperationState.RUNNING for one in line)
        if head is not None and not works and not head.waiting_for:
            raise BrokenRuleError(f"{head} waits, and nothing says why.")

    def _pass(self, jobs: list[str]) -> list[str]:
        """Decide about some jobs; return those that have something to be decided now."""
        lines = [self._line(job_id) for job_id in jobs]
        if any(one.places or one.verb is Verb.DEPLOY_LOAD for it in lines for one in it.operations):
            others = sorted(self._waiting[""] - set(jobs), key=self._rank)[:URGENT]
            lines += [self._line(job_id) for job_id in others]
        capacity = FreeCapacity(self._hosts, self._kept.on, policy=self._policy, table=self._table)
        plan = make_plan(lines, self._catalog, capacity)
        again: list[str] = []
        for ending in plan.endings:
            if ending.state is OperationState.REJECTED:
                raise BrokenRuleError(f"{ending.operation} was rejected: {ending.error}")
            self._take_out(ending.operation)
            again.append(ending.operation.job_id or "")
        for load in plan.loads:
            reason = SystemReason.ON_DEMAND.about(load.operation.operation_id)
            self._put_in_front(load.job.job_id, Verb.DEPLOY_LOAD, reason, load.operation.priority)
            again.append(load.job.job_id)
        for waits in plan.explained:
            self._lines[waits.job_id or ""][waits.operation_id] = waits
        for one in plan.dispatches:
            self._begin(one)
        for job_id in plan.beyond_help:
            self._kept.give_up(job_id)
        again += self._make_room(plan.crowded)
        for line in lines:
            self._note_whether_it_waits(line.job.job_id)
        return list(dict.fromkeys(again))

    def _still_waits(self, operation: OperationRecord) -> bool:
        now = self._lines[operation.job_id or ""].get(operation.operation_id)
        return now is not None and now.state is OperationState.QUEUED

    def _rank(self, job_id: str) -> tuple[int, int]:
        head = next(iter(self._lines[job_id].values()))
        return head.rank, head.line or 0

    def _note_whether_it_waits(self, job_id: str) -> None:
        head = next(iter(self._lines[job_id].values()), None)
        where = self._jobs[job_id].host_id or ""
        for waiting in (self._waiting[""], self._waiting[where]):
            waiting.discard(job_id)
        if head is None or head.state is not OperationState.QUEUED:
            return
        if head.waiting_for:
            self._waiting[where].add(job_id)
            if not self._sweeps:
                self._sweeps = True
                self._after(SWEEP_S, None)

    def _make_room(self, crowded: Iterable[Crowded]) -> list[str]:
        woken: list[str] = []
        for one in crowded:
            there = [
                (host, [self._line(job_id) for job_id in residents_of(host, besides=one)])
                for host in hosts_for(one, self._hosts)
            ]
            lines = chain.from_iterable(found for _, found in there)
            self.outcome.had_to_stay += sum(never_makes_room(spec_of(it.job)) for it in lines)
            wait_s = self._scenario.swap_wait_s
            decision = decide(one, there, self._time, swap_wait_s=wait_s, usage=self._usage)
            self._kept.follow(one, decision)
            if decision.elsewhere is not None:
                self._bring_elsewhere(one)
                woken.append(one.request.job_id)
            for job_id in decision.way.jobs if decision.way else ():
                if not is_leaving(self._line(job_id)):
                    self._evict(job_id, one)
                    woken.append(job_id)
        return woken

    def _bring_elsewhere(self, one: Crowded) -> None:
        job_id, operation = one.request.job_id, one.operation
        if next(iter(self._lines[job_id])) == operation.operation_id:
            reason = SystemReason.RELOCATED_FOR.about(operation.operation_id)
            self._put_in_front(job_id, Verb.DEPLOY_CREATE, reason, operation.priority)
            self.outcome.relocations += 1

    def _evict(self, job_id: str, one: Crowded) -> None:
        check_that_it_may_be_evicted(self._jobs[job_id], self._time)
        waited_s = (self._time - (one.operation.accepted_at or BEGINNING)).total_seconds()
        if self._lines[job_id] and waited_s < self._scenario.swap_wait_s:
            raise BrokenRuleError(f"{job_id} is in use and was evicted too early.")
        self._kept.give_up(job_id)
        reason = SystemReason.EVICTED_FOR.about(one.operation.operation_id)
        self._put_in_front(job_id, Verb.DEPLOY_UNLOAD, reason)
        self.outcome.swaps += 1

    def _look_for_idleness(self, job_id: str) -> None:
        """Have a job looked at once its model may be idle, as the dispatcher looks at all."""
        job = self._jobs[job_id]
        if job.state is JobState.LOADED and not self._lines[job_id]:
            idle_at = self._idle_at(job)
            if idle_at is not None:
                looks = math.floor(idle_at / INTERVAL_S) + 1
                self._after(looks * INTERVAL_S - self._now, job_id)

    def _idle_at(self, job: JobRecord) -> float | None:
        """Return when a model has been idle for its time, if nobody uses it until then."""
        residency = spec_of(job).residency
        idle_s, stays_s = residency.idle_unload_s, residency.min_resident_s
        if idle_s is None or job.loaded_at is None:
            return None
        loaded_at = (job.loaded_at - BEGINNING).total_seconds()
        return max(self._used_at[job.job_id] + idle_s, loaded_at + max(idle_s, stays_s))

    def _unload_if_idle(self, job_id: str) -> None:
        job = self._jobs[job_id]
        idle_at = self._idle_at(job)
        if job.state is not JobState.LOADED or self._lines[job_id] or idle_at is None:
            return  # it is looked at again when what is in line has ended
        if is_idle(job, self._time, unused_s=self._usage.idle_s(job_id) or 0.0):
            check_that_it_may_leave_idle(job, self._time)
            self._put_in_front(job_id, Verb.DEPLOY_UNLOAD, SystemReason.IDLE)
            self._usage.note(job_id)
            self._schedule([job_id])
        elif idle_at < self._now - CLOCK_S and not spec_of(job).residency.pinned:
            raise BrokenRuleError(f"{job_id} is idle and stays in memory.")

    def _begin(self, one: PlannedDispatch) -> None:
        operation, job = one.operation, one.job
        if one.relocates:
            self._leave(operation, job)
        if one.allocation is not None and one.placement is not None:
            self._hold(one.host.host_id, Reservation(**dict(one.allocation), token=""))
            self._rivals.come(one.allocation, operation, one.host.host_id, self._now)
            job = self._set(
                job,
                host_id=one.host.host_id,
                generation=one.generation,
                highest_generation=one.generation,
                spec=one.placement.spec,
                devices=one.allocation.devices,
            )
        elif one.resident is not None:
            held = self._hosts[one.host.host_id].reservation(job.job_id, job.generation)
            if held is None:
                raise BrokenRuleError(f"{job.job_id} holds nothing and is to be loaded.")
            self._hold(one.host.host_id, held.model_copy(update={"resident": one.resident}))
        running = operation.model_copy(update={"state": OperationState.RUNNING, "waiting_for": ()})
        line = self._lines[job.job_id]
        if operation.verb is Verb.DEPLOY_UNLOAD and any(
            other.state is OperationState.RUNNING for other in line.values()
        ):
            raise BrokenRuleError(f"{job.job_id} is to be unloaded while inferences run on it.")
        line[operation.operation_id] = running
        self._measure(running, job)
        self._after(self._duration(running, self._models[spec_of(job).name]), running)

    def _leave(self, create: OperationRecord, job: JobRecord) -> None:
        """Take a job off its host; what its load may wait there counts for its bound."""
        load = self._lines[job.job_id][(create.reason or "").partition(":")[2]]
        waited_s = (self._time - (load.accepted_at or BEGINNING)).total_seconds()
        bound_s = self._bound_s(load, job, waited_s)
        self._bounds_s[load.operation_id] += bound_s + CREATE_S
        self._release(job.host_id or "", job)

    def _bound_s(self, load: OperationRecord, job: JobRecord, waited_s: float) -> float:
        lines = map(self._line, self._waiting[""])
        unplaced = chain.from_iterable(one.operations[:1] for one in lines)
        return self._rivals.bound_s(load, job, self._now - waited_s, unplaced)

    def _measure(self, operation: OperationRecord, job: JobRecord) -> None:
        accepted_at = operation.accepted_at or BEGINNING
        waited_s = (self._time - accepted_at).total_seconds()
        arrival = self._arrivals.get(operation.operation_id)
        if arrival is not None and operation.verb in (Verb.INFER, Verb.TEMP):
            self.outcome.waits[operation.priority].append(waited_s)
            for uuid in job.devices:
                self._busy_since.setdefault(uuid, self._now)
                self._busy[uuid] += 1
        if operation.verb is Verb.INFER and arrival is not None:
            self.outcome.started.append((arrival, job.devices, spec_of(job).name))
        elif SystemReason.IDLE.gave(operation.reason):
            self.outcome.idle_late_s.append(self._now - (self._idle_at(job) or self._now))
        elif operation.verb is Verb.DEPLOY_LOAD and operation.source == "system":
            bound_s = self._bound_s(operation, job, waited_s)
            bound_s += self._bounds_s.pop(operation.operation_id, 0.0)
            self.outcome.room_waits.append((waited_s, bound_s))

    def _duration(self, operation: OperationRecord, model: SimulatedModel) -> float:
        arrival = self._arrivals.get(operation.operation_id)
        takes_s = arrival.takes_s if arrival is not None else 0.0
        match operation.verb:
            case Verb.DEPLOY_CREATE:
                return CREATE_S
            case Verb.DEPLOY_LOAD:
                is_loaded = self._jobs[operation.job_id or ""].state is JobState.LOADED
                return LOADED_ALREADY_S if is_loaded else model.load_s
            case Verb.DEPLOY_UNLOAD:
                return model.unload_s
            case Verb.TEMP:
                return CREATE_S + model.load_s + takes_s
            case Verb.TERMINATE:
                return TERMINATE_S
            case _:
                return takes_s

    def _end(self, operation: OperationRecord) -> None:
        job = self._jobs[operation.job_id or ""]
        host_id = job.host_id or ""
        self._take_out(operation)
        freed = True
        match operation.verb:
            case Verb.DEPLOY_CREATE:
                self._set(job, state=JobState.CREATED)
            case Verb.DEPLOY_LOAD:
                if job.state is not JobState.LOADED:
                    load_s = self._models[spec_of(job).name].load_s
                    self._set(job, state=JobState.LOADED, loaded_at=self._time, load_s=load_s)
            case Verb.DEPLOY_UNLOAD:
                held = self._hosts[host_id].reservation(job.job_id, job.generation)
                if held is not None:
                    self._hold(host_id, held.model_copy(update={"resident": None}))
                self._set(job, state=JobState.CREATED)
            case Verb.TEMP | Verb.TERMINATE:
                if operation.verb is Verb.TEMP:
                    self._rest(job)
                self._release(host_id, job)
                self._set(job, state=JobState.TERMINATED, host_id=None, devices=())
            case _:
                freed = False
                self._rest(job)
        # What is idle now may make room for what waits on this host.
        waiting = self._waiting[host_id] if freed or not self._lines[job.job_id] else set()
        unplaced = sorted(self._waiting[""], key=self._rank)[:URGENT] if freed else []
        self._schedule([job.job_id, *sorted(waiting, key=self._rank), *unplaced])
        self._look_for_idleness(job.job_id)

    def _rest(self, job: JobRecord) -> None:
        for uuid in job.devices:
            self._busy[uuid] -= 1
            if not self._busy[uuid]:
                self.outcome.busy_device_s += self._now - self._busy_since.pop(uuid)

    def _take_out(self, operation: OperationRecord) -> None:
        job_id = operation.job_id or ""
        self._usage.note(job_id)
        self._used_at[job_id] = self._now
        del self._lines[job_id][operation.operation_id]

    def _set(self, job: JobRecord, **changes: object) -> JobRecord:
        changed = job.model_copy(update={**changes, "version": job.version + 1})
        self._jobs[job.job_id] = changed
        return changed

    def _sweep(self) -> None:
        """Look at all that waits again; what was explained and what it waits for must agree."""
        waiting = sorted(set().union(*self._waiting.values()), key=self._rank)
        if not self._events and self._now > self._over_at:
            head = next(iter(self._lines[waiting[0]].values()))
            raise BrokenRuleError(f"{head} of {self._scenario.name} never starts.")
        if waiting:
            self._schedule(waiting)
        self._sweeps = any(self._waiting.values())
        if self._sweeps:
            self._after(SWEEP_S, None)

    def _after(self, seconds: float, event: OperationRecord | str | None) -> None:
        heapq.heappush(self._events, (self._now + seconds, next(self._numbers), event))

    def _hold(self, host_id: str, held: Reservation) -> None:
        host = self._hosts[host_id]
        others = tuple(one for one in host.reservations if one.job_id != held.job_id)
        changed = host.model_copy(update={"reservations": (*others, held)})
        check_that_nothing_is_given_twice(changed)
        self._put(changed)

    def _release(self, host_id: str, job: JobRecord) -> None:
        self._rivals.go(host_id, job.job_id, self._now)
        host = self._hosts[host_id]
        others = tuple(one for one in host.reservations if one.job_id != job.job_id)
        self._put(host.model_copy(update={"reservations": others}))

    def _put(self, host: HostRecord) -> None:
        self._hosts[host.host_id] = host
        self._table.put([host])
