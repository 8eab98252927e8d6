"""Why an operation has not started: the rules of the dispatcher, with their numbers. Pure.

The dispatcher decides by the same placement rules; what is explained here is a later moment, so it
may be that the operation starts while its explanation is on its way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from modelyard.contract.capacity.footprints import NOTHING_LEARNED, Learned
from modelyard.contract.catalog.entries import ModelSpec
from modelyard.contract.states import JobState, Liveness, OperationState, Verb
from modelyard.contract.views import Explanation, HolderView, HostVerdict
from modelyard.scheduling.fitting import KEPT_FOR_OTHERS, PlacementRequest
from modelyard.scheduling.leaving import why_it_stays
from modelyard.scheduling.refusals import refusal_to_load, refusal_with_numbers
from modelyard.store.records import HostRecord, JobLine, JobRecord, OperationRecord

MOST_HOSTS = 100
MOST_HOLDERS = 20


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of an operation that is QUEUED."""

    operation: OperationRecord
    now: datetime
    """The time by the database's clock."""
    line: JobLine | None = None
    """Its job with the head of its line; None if the job is not recorded yet."""
    spec: ModelSpec | None = None
    """The model that would be placed; None if the catalog does not have it."""
    hosts: Sequence[HostRecord] = ()
    more_urgent: int = 0
    residents: Mapping[str, JobLine] = field(default_factory=dict)
    """Jobs that hold memory on these hosts, by id."""
    learned: Learned = NOTHING_LEARNED
    """What the model was measured to take."""
    took_s: Mapping[Verb, float] = field(default_factory=dict)
    """Seconds that the job's operations took lately, by verb."""


def explain(facts: Facts) -> Explanation:
    """Return why the operation has not started, or that it has."""
    operation = facts.operation
    if operation.state is not OperationState.QUEUED:
        return _of_started(operation)
    if operation.aside:
        return _explanation(facts, f"It belongs to the move of job {operation.job_id}.")
    if operation.line is None or facts.line is None:
        return _explanation(facts, "It was accepted, and the dispatcher has not taken it in yet.")
    if operation.resting and operation.not_before is not None:
        failed = f" ({operation.error.code})" if operation.error else ""
        again = operation.not_before.isoformat(timespec="seconds")
        return _explanation(facts, f"Its last attempt failed{failed}; the next begins at {again}.")
    return _of_line(facts, facts.line)


def _of_line(facts: Facts, line: JobLine) -> Explanation:
    operation, job = facts.operation, line.job
    ahead = [one for one in line.operations if (one.line or 0) < (operation.line or 0)]
    if job.recovery is not None:
        return _explanation(facts, f"Job {job.job_id} is being restored first.", ahead)
    if ahead and not _joins(operation, ahead, job):
        return _explanation(facts, _behind(operation, ahead, job), ahead)
    running = sum(one.state is not OperationState.QUEUED for one in line.operations)
    if operation.verb is Verb.DEPLOY_UNLOAD and running:
        ends = "1 inference ends" if running == 1 else f"{running} inferences end"
        return _explanation(facts, f"{ends} first on job {job.job_id}.")
    if operation.places:
        return _of_placement(facts)
    return _of_its_host(facts, job)


def _of_started(operation: OperationRecord) -> Explanation:
    where = f" on host {operation.host_id}" if operation.host_id else ""
    if operation.state.terminal:
        sentence = f"It has ended: {operation.state}."
    elif operation.state is OperationState.DISPATCHED:
        sentence = f"It was sent to host {operation.host_id}, whose worker has not begun it yet."
    else:
        sentence = f"It runs{where}" + (f": {operation.phase}." if operation.phase else ".")
    return Explanation(
        operation_id=operation.operation_id, state=operation.state, reasons=(sentence,)
    )


def _explanation(
    facts: Facts, sentence: str, ahead: Sequence[OperationRecord] = (), **more: object
) -> Explanation:
    return Explanation.model_validate(
        {
            "operation_id": facts.operation.operation_id,
            "state": facts.operation.state,
            "reasons": (sentence, *facts.operation.waiting_for),
            "ahead_in_line": len(ahead),
            "next_in_line": ahead[0].operation_id if ahead else None,
            "estimated_start_s": _estimate(facts, ahead) if ahead else None,
            **more,
        }
    )


def _joins(operation: OperationRecord, ahead: Sequence[OperationRecord], job: JobRecord) -> bool:
    """Tell whether it may run beside those before it."""
    at_once = job.spec.max_concurrency if job.spec else 1
    return operation.shared and all(one.shared for one in ahead) and len(ahead) < at_once


def _behind(operation: OperationRecord, ahead: Sequence[OperationRecord], job: JobRecord) -> str:
    first = ahead[0]
    if operation.shared and all(one.shared for one in ahead) and job.spec is not None:
        return (
            f"{len(ahead)} inferences of job {job.job_id} are before it, and its model runs "
            f"{job.spec.max_concurrency} at the same time (max_concurrency)."
        )
    count = "1 operation" if len(ahead) == 1 else f"{len(ahead)} operations"
    why = f", for {first.reason}" if first.reason else ""
    return (
        f"{count} of job {job.job_id} go before it; the first is {first.verb} "
        f"{first.operation_id} ({first.state}{why})."
    )


def _estimate(facts: Facts, ahead: Sequence[OperationRecord]) -> float | None:
    """Return the seconds that those ahead take, less what has passed of those that run."""
    seconds = 0.0
    for one in ahead:
        took_s = facts.took_s.get(one.verb) if one.verb else None
        if took_s is None:
            return None
        ran_s = (facts.now - one.started_at).total_seconds() if one.started_at else 0.0
        seconds += max(0.0, took_s - max(0.0, ran_s))
    job = facts.line.job if facts.line else None
    shared = all(one.shared for one in ahead) and job is not None and job.spec is not None
    return seconds / job.spec.max_concurrency if shared and job and job.spec else seconds


def _of_placement(facts: Facts) -> Explanation:
    operation, line = facts.operation, facts.line
    if facts.spec is None or line is None:
        return _explanation(facts, f"The catalog has no model {operation.model!r}.")
    at_once = operation.verb is Verb.TEMP
    request = PlacementRequest.of(line.job, facts.spec, facts.learned, at_once=at_once)
    verdicts = [_verdict(facts, host, refusal_with_numbers(host, request)) for host in facts.hosts]
    fitting = [one.host_id for one in verdicts if one.fits]
    if fitting and any(KEPT_FOR_OTHERS in reason for reason in operation.waiting_for):
        sentence = f"Host {fitting[0]} has room for it, but {KEPT_FOR_OTHERS}."
    elif fitting:
        sentence = f"It can start on {fitting[0]}; the dispatcher is about to send it there."
    elif not verdicts:
        sentence = "No host has ever been online."
    else:
        sentence = f"None of {len(facts.hosts)} hosts has room for it now."
        if all(one.refusal and "even when empty" in one.refusal for one in verdicts):
            sentence = f"None of {len(facts.hosts)} hosts could ever hold it."
    return _explanation(
        facts, sentence, hosts=tuple(verdicts[:MOST_HOSTS]), ahead_in_waiting_room=facts.more_urgent
    )


def _of_its_host(facts: Facts, job: JobRecord) -> Explanation:
    host = next((one for one in facts.hosts if one.host_id == job.host_id), None)
    if host is None:
        return _explanation(facts, "The dispatcher is about to look at it.")
    if host.liveness is not Liveness.ONLINE:
        return _explanation(facts, f"Its job is on host {host.host_id}, which is {host.liveness}.")
    if facts.operation.verb is Verb.DEPLOY_LOAD and job.state is JobState.CREATED and job.spec:
        refusal = refusal_to_load(host, job, job.spec, facts.learned)
        if refusal is not None:
            verdict = _verdict(facts, host, refusal)
            sentence = f"Its model has no room on host {host.host_id}: {refusal}."
            return _explanation(facts, sentence, hosts=(verdict,))
    return _explanation(facts, f"The dispatcher is about to send it to host {host.host_id}.")


def _verdict(facts: Facts, host: HostRecord, refusal: str | None) -> HostVerdict:
    holders = _holders(facts, host) if refusal is not None else ()
    return HostVerdict(host_id=host.host_id, fits=refusal is None, refusal=refusal, holders=holders)


def _holders(facts: Facts, host: HostRecord) -> tuple[HolderView, ...]:
    holders: list[HolderView] = []
    for held in host.reservations:
        line = facts.residents.get(held.job_id)
        if held.resident is None or line is None or len(holders) == MOST_HOLDERS:
            continue
        memory = {"memory": held.resident.memory} if held.resident.memory else {}
        holders.append(
            HolderView(
                job_id=held.job_id,
                model=line.job.spec.name if line.job.spec else None,
                frees={**held.resident.devices, **memory},
                stays=why_it_stays(line, facts.now),
            )
        )
    return tuple(holders)
