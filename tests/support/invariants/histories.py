"""I6 over the event log: whether what happened to each operation is a path of the table.

Events are ordered by epoch, then by sequence number; a report may be told late, and coalesced
reports leave states out. Within one attempt the table's own edges count, with states left out
between them; from one attempt to the next the way leads through QUEUED.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from modelyard.contract.states import (
    JOB_TRANSITIONS,
    OPERATION_TRANSITIONS,
    JobState,
    OperationState,
)

STALE = frozenset({"operation.stale_report", "host.stale_report"})
"""Events that are no facts: notes of what came too late."""

_ORDER = {OperationState.DISPATCHED: 0, OperationState.RUNNING: 1, OperationState.QUEUED: 2}
"""Among events of one sequence number: an end or a return to the queue comes last."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One event of an operation."""

    epoch: int
    seq: int
    state: OperationState

    @property
    def place(self) -> tuple[int, int, int]:
        """Where it stands in the operation's history."""
        return self.epoch, self.seq, _ORDER.get(self.state, 3)


def wrong_with(operation_id: str, facts: Iterable[Fact], now: OperationState) -> Iterator[str]:
    """Yield a sentence for each thing that is wrong with one history; `now` is the record."""
    history = sorted(facts, key=lambda fact: fact.place)
    ends = {fact.state for fact in history if fact.state.terminal}
    if len(ends) > 1:
        yield f"{operation_id} has more than one end: {', '.join(sorted(ends))}"
    if ends and now not in ends:
        yield f"{operation_id} is {now}, but its events say {', '.join(sorted(ends))}"
    for earlier, later in itertools.pairwise(history):
        if not legal(earlier, later):
            yield (
                f"{operation_id} went from {_said(earlier)} to {_said(later)}: "
                f"{' '.join(map(_said, history))}"
            )


def legal(earlier: Fact, later: Fact) -> bool:
    """Tell whether the second may follow the first, with states between them left out."""
    if earlier.state.terminal:
        return earlier == later
    if earlier.epoch == later.epoch:
        return later.state in _within_an_attempt(earlier.state)
    # A new attempt begins with DISPATCHED; an end by the dispatcher keeps the last epoch. Of an
    # attempt whose dispatcher died right after its claim only the return to the queue is told.
    return later.state is not OperationState.QUEUED or earlier.state is OperationState.QUEUED


def wrong_between(operation_id: str, earlier: Fact, later: Fact) -> str | None:
    """Say what is wrong with two looks at one record, the second taken after the first."""
    if earlier.state.terminal and later.state is not earlier.state:
        return f"{operation_id} had ended as {earlier.state} and became {later.state}"
    if later.epoch < earlier.epoch:
        return f"{operation_id} fell back from epoch {earlier.epoch} to {later.epoch}"
    if later.epoch == earlier.epoch and later.seq < earlier.seq:
        return f"{operation_id} fell back from seq {earlier.seq} to {later.seq}"
    return None


@dataclass(frozen=True, slots=True)
class JobLook:
    """One look at a job's record, of which each write is another version."""

    version: int
    generation: int
    state: JobState


def wrong_between_jobs(job_id: str, earlier: JobLook, later: JobLook) -> str | None:
    """Say what is wrong with two looks at one job, the second taken after the first.

    Of versions further apart than one write nothing is said: the way led over states unseen.
    """
    before, now = (earlier.version, earlier.generation), (later.version, later.generation)
    if now[0] < before[0] or now[1] < before[1]:
        return f"job {job_id} fell back from (version, generation) {before} to {now}"
    allowed = {earlier.state}
    if later.version == earlier.version + 1:
        allowed |= JOB_TRANSITIONS[earlier.state]
    if later.version <= earlier.version + 1 and later.state not in allowed:
        return (
            f"job {job_id} went from {earlier.state} to {later.state}, "
            f"version {earlier.version} to {later.version}"
        )
    return None


def _within_an_attempt(state: OperationState) -> frozenset[OperationState]:
    """Return what may follow without a new epoch: over the table's edges, past QUEUED never.

    Of an attempt that failed or was never begun, the dispatcher's return to the queue has the
    attempt's epoch; the next claim raises it. That no report led there, the record's counters say.
    """
    if state is OperationState.QUEUED:
        return OPERATION_TRANSITIONS[state] - {OperationState.DISPATCHED} | {state}
    return OPERATION_TRANSITIONS[state]


def _said(fact: Fact) -> str:
    return f"{fact.state}({fact.epoch},{fact.seq})"
