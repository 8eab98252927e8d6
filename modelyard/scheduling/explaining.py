"""Explains an operation that has not started, and a request that is not made, in sentences. Pure.

The dispatcher may decide at another moment than the one that is explained, so an operation may
start while its explanation is on its way.
"""

from collections.abc import Sequence

from modelyard.contract.states import VERB_RULES, OperationState, Verb
from modelyard.contract.views import DryRun, DryRunOutcome, Explanation
from modelyard.scheduling.fitting import KEPT_FOR_OTHERS
from modelyard.scheduling.prospects import Facts, Prospect, prospect_of
from modelyard.store.jobs import HeadOfLine, OperationInLine
from modelyard.store.records import OperationRecord


def explain(operation: OperationRecord) -> Explanation:
    """Return that an operation has started, or why it is not in line."""
    if operation.state is not OperationState.QUEUED:
        sentence = _of_started(operation)
    elif operation.aside:
        sentence = f"It belongs to the move of job {operation.job_id}."
    else:
        sentence = "It was accepted, and the dispatcher has not taken it in yet."
    return _explanation(operation, sentence)


def explain_in_line(facts: Facts) -> Explanation:
    """Return why an operation in line has not started, or that it has meanwhile."""
    operation = facts.operation
    if operation.state is not OperationState.QUEUED:
        return explain(operation)
    if operation.resting and operation.not_before is not None:
        failed = f" ({operation.error.code})" if operation.error else ""
        again = operation.not_before.isoformat(timespec="seconds")
        sentence = f"Its last attempt failed{failed}; the next begins at {again}."
        return _explanation(operation, sentence)
    prospect = prospect_of(facts)
    return Explanation(
        operation_id=operation.operation_id,
        state=operation.state,
        reasons=(*_about_to_be(prospect, operation), *prospect.reasons),
        ahead_in_line=prospect.ahead_in_line,
        next_in_line=prospect.next_in_line,
        ahead_in_waiting_room=prospect.ahead_in_waiting_room,
        hosts=prospect.hosts,
        estimated_start_s=prospect.estimated_start_s,
    )


def waits_in_line(operation: OperationRecord, head: HeadOfLine | None) -> tuple[str, ...]:
    """Return what a QUEUED operation in line waits for that no host is looked for yet.

    `head` has the first open operations of its job. Nothing is returned for one that nothing in
    line holds: the scheduler records what that waits for.
    """
    if head is None:
        return ()
    if head.restoring:
        return ("its job, which is being restored",)
    before = [one for one in head.operations if _is_before(one, operation)]
    if not before:
        return _waits_for_what_runs(operation, head)
    first = before[0]
    # Whatever is behind an operation that shares its job with no other waits for that one.
    holds = next((one for one in before if not VERB_RULES[one.verb].shared), first)
    where = "the first of its job's line" if holds is first else "before it in its job's line"
    said = f"{_called(holds)}, {where}"
    if _is_beyond_concurrency(operation, before, head):
        said += f"; its model takes {head.max_concurrency} at the same time (max_concurrency)"
    return (said,)


def _is_before(one: OperationInLine, operation: OperationRecord) -> bool:
    if one.operation_id == operation.operation_id:
        return False
    return operation.line is None or one.line < operation.line


def _waits_for_what_runs(operation: OperationRecord, head: HeadOfLine) -> tuple[str, ...]:
    """Return the first operation that runs, for one that needs its job alone and was put before."""
    if operation.shared:
        return ()
    runs = next((one for one in head.operations if one.state is not OperationState.QUEUED), None)
    return (f"{_called(runs)}, which ends before it",) if runs else ()


def _is_beyond_concurrency(
    operation: OperationRecord, before: Sequence[OperationInLine], head: HeadOfLine
) -> bool:
    """Tell whether only as many inferences as may run at once keep an operation waiting."""
    shared = operation.shared and all(VERB_RULES[one.verb].shared for one in before)
    last = head.operations[-1].line
    # Of a longer line it is not known what is between its head and the operation.
    known = head.whole or (operation.line or 0) <= last
    return shared and known and len(before) >= head.max_concurrency


def _called(one: OperationInLine) -> str:
    why = f", for {one.reason}" if one.reason else ""
    return f"{one.verb} {one.operation_id} ({one.state}{why})"


def explain_request(verb: Verb, facts: Facts) -> DryRun:
    """Return what would become of a request that is not made; its operation is last in line."""
    prospect = prospect_of(facts)
    return DryRun(
        outcome=prospect.outcome,
        job_id=facts.line.job.job_id,
        operation_type=verb,
        error=prospect.error,
        host_id=prospect.host_id,
        devices=prospect.devices,
        reasons=(*_would_be(prospect, facts), *prospect.reasons),
        ahead_in_line=prospect.ahead_in_line,
        next_in_line=prospect.next_in_line,
        ahead_in_waiting_room=prospect.ahead_in_waiting_room,
        hosts=prospect.hosts,
        estimated_start_s=prospect.estimated_start_s,
    )


def explain_repetition(verb: Verb, existing: OperationRecord) -> DryRun:
    """Return that a request would be the operation which has its idempotency key already."""
    sentence = (
        f"Its idempotency key is that of operation {existing.operation_id} ({existing.state}), so "
        "nothing new would be made."
    )
    return DryRun(
        outcome=DryRunOutcome.REPEATS,
        job_id=existing.job_id or "",
        operation_type=verb,
        operation_id=existing.operation_id,
        reasons=(sentence,),
    )


def _explanation(operation: OperationRecord, sentence: str) -> Explanation:
    waiting_for = operation.waiting_for if operation.state is OperationState.QUEUED else ()
    return Explanation(
        operation_id=operation.operation_id,
        state=operation.state,
        reasons=(sentence, *waiting_for),
    )


def _of_started(operation: OperationRecord) -> str:
    where = f" on host {operation.host_id}" if operation.host_id else ""
    if operation.state.terminal:
        return f"It has ended: {operation.state}."
    if operation.state is OperationState.DISPATCHED:
        return f"It was sent to host {operation.host_id}, whose worker has not begun it yet."
    return f"It runs{where}" + (f": {operation.phase}." if operation.phase else ".")


def _about_to_be(prospect: Prospect, operation: OperationRecord) -> tuple[str, ...]:
    """Return what the dispatcher is about to do with an operation; nothing if that waits."""
    starts = prospect.outcome is DryRunOutcome.STARTS
    if starts and any(KEPT_FOR_OTHERS in reason for reason in operation.waiting_for):
        # Only the dispatcher knows what it clears for whom.
        return (f"Host {prospect.host_id} has room for it, but {KEPT_FOR_OTHERS}.",)
    match prospect.outcome:
        case DryRunOutcome.REJECTED:
            what = f"reject it: {prospect.error.message if prospect.error else ''}"
        case DryRunOutcome.SUCCEEDS:
            what = "end it: its job has no container."
        case DryRunOutcome.STARTS:
            what = f"send it to host {prospect.host_id}."
        case DryRunOutcome.LOADS_FIRST:
            what = f"load its model on host {prospect.host_id} first."
        case _:
            return ()
    return (f"The dispatcher is about to {what}",)


def _would_be(prospect: Prospect, facts: Facts) -> tuple[str, ...]:
    """Return what would become of a request; nothing if it would wait."""
    on = f", on {' and '.join(prospect.devices)}" if prospect.devices else ""
    match prospect.outcome:
        case DryRunOutcome.REJECTED if prospect.error is not None:
            return (f"It would be REJECTED ({prospect.error.code}): {prospect.error.message}",)
        case DryRunOutcome.SUCCEEDS:
            job = facts.line.job
            return (f"It would succeed as it is: job {job.job_id} has no container.",)
        case DryRunOutcome.STARTS if prospect.host_id is None:
            return ("It would start at once.",)
        case DryRunOutcome.STARTS:
            return (f"It would start at once on host {prospect.host_id}{on}.",)
        case DryRunOutcome.LOADS_FIRST:
            return (f"Its model would be loaded on host {prospect.host_id}{on} first.",)
        case _:
            return ()
