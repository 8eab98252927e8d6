"""What the dispatcher would do with an operation now: the plan of a pass, with its numbers. Pure.

The operation may exist, or be that of a request which is not made. The plan is made by the same
functions as the dispatcher's; only what it holds in memory alone is not known here.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import takewhile

from modelyard.contract.capacity.footprints import NOTHING_LEARNED
from modelyard.contract.errors import ErrorInfo
from modelyard.contract.states import Liveness, OperationState, SystemReason, Verb
from modelyard.contract.views import DryRunOutcome, HostVerdict
from modelyard.scheduling.fitting import (
    KEPT_FOR_OTHERS,
    Lacks,
    PlacementRequest,
    lacking_now,
    refusal_of,
)
from modelyard.scheduling.holders import holders_of, seconds_left, seconds_until
from modelyard.scheduling.locality import DATASET, IMAGE, to_fetch
from modelyard.scheduling.ordering import (
    AlreadySatisfied,
    CatalogEntries,
    Dispatch,
    LoadFirst,
    PlaceAndDispatch,
    Reject,
    Relocate,
    next_decisions,
)
from modelyard.scheduling.placement import FreeCapacity, LearnedOf, PlacementPolicy
from modelyard.scheduling.planning import (
    PlannedDispatch,
    SchedulingPlan,
    make_plan,
    placement_request,
)
from modelyard.scheduling.refusals import (
    lacks_to_load,
    refusal_to_load,
    refusal_with_numbers,
)
from modelyard.store.records import HostRecord, JobLine, JobRecord, OperationRecord, rank_of

MOST_HOSTS = 100
NOT_YET = "The dispatcher has not looked for a host for it yet."
_NOT_LOOKED_AT = (
    f"There are more than {MOST_HOSTS} hosts, and it was not looked at which of them has room for "
    "its model."
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known at one moment of an operation in line, or of one that would be."""

    operation: OperationRecord
    line: JobLine
    """Its job with the first operations of the line, and with itself."""
    now: datetime
    """The time by the database's clock."""
    beyond: int = 0
    """How many operations between those and itself are left out."""
    urgent: Sequence[JobLine] = ()
    """The other jobs whose operations wait for a host, as far as they join each pass."""
    catalog: CatalogEntries = field(default_factory=lambda: CatalogEntries({}, {}))
    """The entries that these jobs name."""
    hosts: Sequence[HostRecord] = ()
    more_hosts: bool = False
    """True if there are more hosts than these: then nothing is planned for what waits for one, and
    the reasons are those that the dispatcher has recorded, or what is known of these hosts."""
    asked: bool = False
    """True for a request that is not made, of which nothing is recorded."""
    policy: PlacementPolicy = PlacementPolicy.BINPACK
    """The leading dispatcher's."""
    more_urgent: int = 0
    """How many operations that wait for the same room are before it."""
    holding: Mapping[str, JobLine] = field(default_factory=dict)
    """Jobs that hold something on these hosts, by id."""
    learned: LearnedOf = lambda _: NOTHING_LEARNED
    """Tells what models were measured to take."""
    took_s: Mapping[Verb, float] = field(default_factory=dict)
    """Seconds that the job's operations took lately, by verb."""
    temps_took_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds that TEMPs took lately, by model."""


@dataclass(frozen=True, slots=True)
class Prospect:
    """What would become of an operation now."""

    outcome: DryRunOutcome
    reasons: tuple[str, ...] = ()
    """Sentences: what it waits for, the most important first."""
    error: ErrorInfo | None = None
    host_id: str | None = None
    devices: tuple[str, ...] = ()
    ahead_in_line: int = 0
    next_in_line: str | None = None
    ahead_in_waiting_room: int | None = None
    hosts: tuple[HostVerdict, ...] = ()
    estimated_start_s: float | None = None


def prospect_of(facts: Facts) -> Prospect:
    """Return what would become of an operation if a pass of the scheduler began now."""
    key = facts.operation.operation_id
    line = _with_new_reasons(facts.line, key)
    ahead = [*takewhile(lambda one: one.operation_id != key, line.operations)]
    decisions = next_decisions(line, facts.catalog) if not facts.beyond else []
    decision = next((one for one in decisions if one.operation.operation_id == key), None)
    hosts = {host.host_id: host for host in facts.hosts}
    capacity = FreeCapacity(hosts, learned=facts.learned, policy=facts.policy)
    plan = make_plan([line, *facts.urgent], facts.catalog, capacity)
    match decision:
        case None:
            return _behind(facts, ahead, plan)
        case Reject(error=error):
            return Prospect(DryRunOutcome.REJECTED, error=error)
        case AlreadySatisfied():
            return Prospect(DryRunOutcome.SUCCEEDS)
        case LoadFirst():
            return _after_its_load(facts, decision)
        case PlaceAndDispatch() | Relocate():
            return _placed(facts, decision, plan)
        case Dispatch():
            return _on_its_host(facts, decision, plan)


def _with_new_reasons(line: JobLine, key: str) -> JobLine:
    """Return the line without the operation's recorded reasons: a plan has only what is new."""
    operations = tuple(
        one.model_copy(update={"waiting_for": ()}) if one.operation_id == key else one
        for one in line.operations
    )
    return line.model_copy(update={"operations": operations})


def _planned(plan: SchedulingPlan, operation: OperationRecord) -> PlannedDispatch | None:
    key = operation.operation_id
    return next((one for one in plan.dispatches if one.operation.operation_id == key), None)


def _cancelled(plan: SchedulingPlan, operation: OperationRecord) -> bool:
    key = operation.operation_id
    return any(
        one.operation.operation_id == key and one.state is OperationState.CANCELLED
        for one in plan.endings
    )


# --- behind others of its job ---


def _behind(facts: Facts, ahead: Sequence[OperationRecord], plan: SchedulingPlan) -> Prospect:
    job = facts.line.job
    if facts.operation.cancel_requested:
        sentence = "Its cancel was requested, and the dispatcher is about to end it."
    elif job.recovery is not None:
        sentence = f"Job {job.job_id} is being restored first."
    elif not ahead:
        sentence = f"What runs on job {job.job_id} ends before it."
    else:
        sentence = _what_is_ahead(facts, ahead)
    withdrawn = [one for one in ahead if not facts.more_hosts and _cancelled(plan, one)]
    makes_way = tuple(
        f"{one.verb} {one.operation_id} has no room, and is CANCELLED to make way for it."
        for one in withdrawn
    )
    return Prospect(
        DryRunOutcome.WAITS,
        (sentence, *makes_way),
        ahead_in_line=len(ahead) + facts.beyond,
        next_in_line=ahead[0].operation_id if ahead else None,
        estimated_start_s=_estimate(facts, ahead, plan),
    )


def _what_is_ahead(facts: Facts, ahead: Sequence[OperationRecord]) -> str:
    first, job, total = ahead[0], facts.line.job, len(ahead) + facts.beyond
    if _share(facts, ahead) and job.spec is not None:
        return (
            f"{total} inferences of job {job.job_id} are before it, and its model runs "
            f"{job.spec.max_concurrency} at the same time (max_concurrency)."
        )
    go = "1 operation of job {0} goes" if total == 1 else f"{total} operations of job {{0}} go"
    why = f", for {first.reason}" if first.reason else ""
    return (
        f"{go.format(job.job_id)} before it; the first is {first.verb} {first.operation_id} "
        f"({first.state}{why})."
    )


def _share(facts: Facts, ahead: Sequence[OperationRecord]) -> bool:
    """Tell whether it and all before it may run at the same time."""
    return facts.operation.shared and all(one.shared for one in ahead) and not facts.beyond


def _estimate(facts: Facts, ahead: Sequence[OperationRecord], plan: SchedulingPlan) -> float | None:
    """Return the seconds that those ahead take, less what has passed of those that run.

    None if something else than those holds the line: a restoration, a host that is silent, or what
    one of them waits for itself.
    """
    job = facts.line.job
    if facts.beyond or not ahead or job.recovery is not None or facts.operation.cancel_requested:
        return None
    if _is_silent(facts, job.host_id) or any(_waits_itself(one, plan) for one in ahead):
        return None
    seconds = 0.0
    for one in ahead:
        took_s = facts.took_s.get(one.verb) if one.verb else None
        if took_s is None:
            return None
        ran_s = (facts.now - one.started_at).total_seconds() if one.started_at else 0.0
        seconds += max(0.0, took_s - max(0.0, ran_s))
    at_once = job.spec.max_concurrency if job.spec and all(one.shared for one in ahead) else 1
    return seconds / at_once


def _is_silent(facts: Facts, host_id: str | None) -> bool:
    return any(
        one.host_id == host_id and one.liveness is not Liveness.ONLINE for one in facts.hosts
    )


def _waits_itself(one: OperationRecord, plan: SchedulingPlan) -> bool:
    """Tell whether an operation waits for more than its turn: for room, for a pause, for a load."""
    if one.state is not OperationState.QUEUED:
        return False
    key = one.operation_id
    loads = any(load.operation.operation_id == key for load in plan.loads)
    return bool(one.waiting_for) or one.resting or key in plan.waiting or loads


# --- on the host of its job ---


def _on_its_host(facts: Facts, decision: Dispatch, plan: SchedulingPlan) -> Prospect:
    operation, job, host_id = decision.operation, decision.job, decision.host_id
    if _planned(plan, operation) is not None:
        return Prospect(
            DryRunOutcome.STARTS, host_id=host_id, devices=job.devices, estimated_start_s=0.0
        )
    host = next((one for one in facts.hosts if one.host_id == host_id), None)
    room = _NO_ROOM
    if _cancelled(plan, operation):
        sentence = _withdrawal(operation)
    elif host is None or host.incarnation is None:
        sentence = f"Its job is on host {host_id}, which is not known."
    elif host.liveness is not Liveness.ONLINE:
        sentence = f"Its job is on host {host_id}, which is {host.liveness}."
    else:
        sentence, room = _room_to_load(facts, host, job, plan.waiting[operation.operation_id][0])
    hosts = room.hosts
    moves = _goes_elsewhere(plan, operation, makes_room=any(_makes_room(one) for one in hosts))
    return Prospect(
        DryRunOutcome.WAITS,
        (sentence, *moves),
        hosts=hosts,
        ahead_in_waiting_room=facts.more_urgent if hosts else None,
        estimated_start_s=None if moves else room.comes_in_s,
    )


@dataclass(frozen=True, slots=True)
class _RoomToLoad:
    hosts: tuple[HostVerdict, ...] = ()
    """The host of the job, if it is room that the model lacks there."""
    comes_in_s: float | None = None


_NO_ROOM = _RoomToLoad()


def _room_to_load(
    facts: Facts, host: HostRecord, job: JobRecord, reason: str
) -> tuple[str, _RoomToLoad]:
    """Return why a model can't be loaded on its host, and what is known of the room there.

    `reason` is the dispatcher's, in words without numbers.
    """
    spec = job.spec
    learned = facts.learned(spec) if spec is not None else NOTHING_LEARNED
    refusal = refusal_to_load(host, job, spec, learned) if spec is not None else None
    if spec is None or refusal is None:  # other rules than room, which have no numbers
        sentence = f"Its model can't be loaded now: {reason}."
        lacks = Lacks.DEVICES if job.devices else Lacks.MEMORY
        return sentence, _RoomToLoad((_verdict(facts, host, reason, lacks, job.devices),))
    lacks = lacks_to_load(host, job, spec, learned)
    verdict = _verdict(facts, host, refusal, lacks, job.devices)
    sentence = f"Its model has no room on host {host.host_id}: {refusal}."
    comes_in_s = _room_comes_in_s(
        facts, lambda there: refusal_to_load(there, job, spec, learned) is None, [host]
    )
    return sentence, _RoomToLoad((verdict,), comes_in_s)


def _room_comes_in_s(
    facts: Facts, room: Callable[[HostRecord], bool], hosts: Sequence[HostRecord]
) -> float | None:
    """Return in how many seconds what runs will have given back enough; None: not known.

    Nor is it known who takes that as long as others go before it.
    """
    if facts.more_urgent:
        return None
    known = {
        job_id: seconds_left(line, facts.now, facts.temps_took_s)
        for job_id, line in facts.holding.items()
    }
    return seconds_until(
        room, hosts, {job_id: left for job_id, left in known.items() if left is not None}
    )


def _makes_room(verdict: HostVerdict) -> bool:
    return any(one.stays is None for one in verdict.holders)


def _goes_elsewhere(
    plan: SchedulingPlan, operation: OperationRecord, *, makes_room: bool
) -> tuple[str, ...]:
    """Return where a job is created anew because its model has room there; nothing if it stays.

    Only the dispatcher knows whether the models that may be unloaded are enough.
    """
    key = operation.operation_id
    crowded = next((one for one in plan.crowded if one.operation.operation_id == key), None)
    place = crowded.elsewhere if crowded is not None else None
    if crowded is None or place is None:
        return ()
    on = f", on {' and '.join(place.allocation.devices)}" if place.allocation.devices else ""
    may_stay = makes_room and not crowded.elsewhere_at_hand
    unless = "Unless what makes room here is enough, its" if may_stay else "Its"
    return (f"{unless} job is created anew on host {place.host.host_id}{on}, which has room.",)


def _relocated(facts: Facts, decision: Relocate, plan: SchedulingPlan) -> Prospect:
    """Return what becomes of the operation that brings an unloaded job to where it has room."""
    start = _planned(plan, decision.operation)
    if start is None:
        return Prospect(DryRunOutcome.WAITS, plan.waiting.get(decision.operation.operation_id, ()))
    if facts.more_hosts and start.allocation is None:  # one of those may have room
        return Prospect(DryRunOutcome.WAITS, (_NOT_LOOKED_AT if facts.asked else NOT_YET,))
    stays = "Its model has no room elsewhere any more, so its job stays there."
    return Prospect(
        DryRunOutcome.STARTS,
        (stays,) if start.allocation is None else (),
        host_id=start.host.host_id,
        devices=start.allocation.devices if start.allocation else decision.job.devices,
        estimated_start_s=0.0,
    )


def _withdrawal(operation: OperationRecord) -> str:
    return f"The dispatcher is about to cancel it: {operation.verb} has no room, and is in the way."


def _after_its_load(facts: Facts, decision: LoadFirst) -> Prospect:
    """Return what would become of an inference whose model is loaded first, on demand."""
    key, job = decision.operation.operation_id, decision.job
    load = OperationRecord(
        operation_id=SystemReason.ON_DEMAND.about(key),
        job_id=job.job_id,
        verb=Verb.DEPLOY_LOAD,
        source="system",
        reason=SystemReason.ON_DEMAND.about(key),
        state=OperationState.QUEUED,
        rank=rank_of(0, facts.now),
    )
    line = facts.line.model_copy(update={"operations": (load, *facts.line.operations)})
    first = prospect_of(replace(facts, operation=load, line=line))
    starts = first.outcome is DryRunOutcome.STARTS
    return Prospect(
        DryRunOutcome.LOADS_FIRST,
        first.reasons,
        host_id=job.host_id,
        devices=job.devices,
        hosts=first.hosts,
        estimated_start_s=facts.took_s.get(Verb.DEPLOY_LOAD, job.load_s) if starts else None,
    )


# --- on a host that is chosen for it ---


def _placed(facts: Facts, decision: PlaceAndDispatch | Relocate, plan: SchedulingPlan) -> Prospect:
    operation = decision.operation
    if isinstance(decision, Relocate):
        return _relocated(facts, decision, plan)
    request = placement_request(decision, facts.learned(decision.spec))
    refusals = [(host, refusal_with_numbers(host, request)) for host in facts.hosts]
    verdicts = tuple(
        _verdict(facts, host, refusal, lacking_now(host, request)).model_copy(
            update={"to_fetch": to_fetch(host, request)}
        )
        for host, refusal in refusals[:MOST_HOSTS]
    )
    if facts.more_hosts:
        return _among_more_hosts(facts, verdicts)
    start = _planned(plan, operation)
    if start is not None:
        return Prospect(
            DryRunOutcome.STARTS,
            _what_comes_first(start.host, request),
            host_id=start.host.host_id,
            devices=start.allocation.devices if start.allocation else (),
            ahead_in_waiting_room=facts.more_urgent,
            hosts=verdicts,
            estimated_start_s=0.0,
        )
    if _cancelled(plan, operation):
        return Prospect(DryRunOutcome.WAITS, (_withdrawal(operation),), hosts=verdicts)
    reasons = plan.waiting.get(operation.operation_id, ())
    fits = any(refusal is None for _, refusal in refusals)
    return Prospect(
        DryRunOutcome.WAITS,
        (_why_no_host(refusals, reasons), *reasons),
        ahead_in_waiting_room=facts.more_urgent,
        hosts=verdicts,
        estimated_start_s=None
        if fits  # what it waits for is not that something ends
        else _room_comes_in_s(
            facts, lambda there: refusal_of(there, request, there.room) is None, facts.hosts
        ),
    )


def _among_more_hosts(facts: Facts, verdicts: tuple[HostVerdict, ...]) -> Prospect:
    """Return what is known of an operation if only the first hosts were looked at."""
    recorded = facts.operation.waiting_for
    outcome = DryRunOutcome.WAITS
    reasons = ("No host had room for it a moment ago.", *recorded) if recorded else (NOT_YET,)
    if facts.asked:
        fit = sum(one.fits for one in verdicts)
        if fit and not facts.more_urgent:
            outcome = DryRunOutcome.STARTS
        have = {0: "none has", 1: "1 has"}.get(fit, f"{fit} have")
        looked_at = f"Only the first {len(verdicts)} hosts were looked at: {have} room for it."
        reasons = (f"{looked_at} The dispatcher looks at all of them.",)
    return Prospect(
        outcome,
        reasons,
        ahead_in_waiting_room=facts.more_urgent,
        hosts=verdicts,
        estimated_start_s=0.0 if outcome is DryRunOutcome.STARTS else None,
    )


def _what_comes_first(host: HostRecord, request: PlacementRequest) -> tuple[str, ...]:
    """Return what a host has to get before it starts a container; nothing if it has all of it."""
    missing = to_fetch(host, request)
    if IMAGE in missing:
        return (f"Host {host.host_id} is not known to have its image, so it may pull it first.",)
    if DATASET in missing:
        return (f"Host {host.host_id} has its image, and is not known to have its dataset.",)
    return (f"Host {host.host_id} has its image{' and its dataset' if request.dataset else ''}.",)


def _why_no_host(refusals: Sequence[tuple[HostRecord, str | None]], reasons: Sequence[str]) -> str:
    fitting = next((host.host_id for host, refusal in refusals if refusal is None), None)
    if fitting is not None and any(KEPT_FOR_OTHERS in one for one in reasons):
        return f"Host {fitting} has room for it, but {KEPT_FOR_OTHERS}."
    if fitting is not None:
        return f"Host {fitting} has room for it, which goes to more urgent operations."
    if not refusals:
        return "No host has ever been online."
    ever = all("even when empty" in (refusal or "") for _, refusal in refusals)
    if len(refusals) == 1:
        [(only, _)] = refusals
        never = "could never hold it" if ever else "does not take it now"
        return f"The only host, {only.host_id}, {never}."
    none = "could ever hold it" if ever else "takes it now"
    return f"None of the {len(refusals)} hosts {none}."


def _verdict(
    facts: Facts,
    host: HostRecord,
    refusal: str | None,
    lacks: Lacks | None,
    devices: Collection[str] = (),
) -> HostVerdict:
    """Return what a host says, and who holds what it lacks; with `devices`, on these alone."""
    mine = facts.line.job.job_id
    holders = (
        holders_of(host, lacks, facts.holding, facts.now, besides=mine, devices=devices)
        if refusal is not None and lacks is not None
        else ()
    )
    return HostVerdict(host_id=host.host_id, fits=refusal is None, refusal=refusal, holders=holders)
