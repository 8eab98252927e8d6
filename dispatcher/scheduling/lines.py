"""The jobs in memory: each with the head of its line, so that no pass has to read them first.

The record is what counts; this is a copy of it. Whoever changes a line through here keeps the copy
exact. All other writes of this process drop the job from memory (`Changes`), and it is read again
when it is needed. Only one dispatcher leads, so nobody else puts operations in line. A copy that is
outdated all the same does no harm: every write is guarded in the database, and a guard that finds
nothing drops the job too.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile

from dispatcher.scheduling.usage import Usage
from modelyard.contract.states import OperationState
from modelyard.store import Store
from modelyard.store.jobs import LINE_HEAD
from modelyard.store.operation_writes import ACTIVE_ON_HOST_STATES
from modelyard.store.records import JobLine, JobRecord, OperationRecord

MAX_OF_A_JOB = 1_000
"""Most operations of one job in memory; those behind them stay in the record alone."""
MAX_OPERATIONS = 30_000
MAX_JOBS = 20_000
VERIFIED_AT_ONCE = 1_000
MAX_INPUT_BYTES = 64 << 20
"""Most bytes of inputs in memory; beyond that, inputs are read when they are dispatched."""


@dataclass(slots=True)
class _HeldLine:
    job: JobRecord
    operations: dict[str, OperationRecord]
    """Its first open operations by id, in the order of the line."""
    whole: bool
    """False if there are more in the record."""


@dataclass(frozen=True, slots=True)
class LinesRead:
    """Jobs with the heads of their lines; `moved` are those that memory does not have after all.

    They changed while jobs were read, or made room for others: they are to be read again.
    """

    lines: tuple[JobLine, ...] = ()
    moved: frozenset[str] = frozenset()


@dataclass(slots=True, eq=False)
class _Loading:
    """One read that is under way, and the jobs that were changed since it began."""

    changed: set[str] = field(default_factory=set)


class Lines:
    """The jobs that this dispatcher holds in memory: a bounded number, the latest used."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: OrderedDict[str, _HeldLine] = OrderedDict()
        self._loading: list[_Loading] = []
        self.usage = Usage()
        self._entering: Counter[str] = Counter()
        self._uncertain: dict[str, str] = {}
        """Operations whose write is under way, with their jobs."""
        self._active: dict[str, OperationRecord] = {}
        """The active operations at the last call of `verify`."""
        self._verified: set[str] = set()
        self._operations = 0
        self._input_bytes = 0

    async def read(self, job_ids: Iterable[str]) -> LinesRead:
        """Return jobs with the heads of their lines, from memory where they are there.

        Jobs that do not exist are left out. Raises `StoreUnavailableError`.
        """
        wanted = list(dict.fromkeys(job_ids))
        at_hand = {job_id for job_id in wanted if self._is_at_hand(job_id)}
        for job_id in at_hand:
            self._held.move_to_end(job_id)
        found = await self._load([job_id for job_id in wanted if job_id not in at_hand])
        lines = [line for job_id in wanted if (line := self.line(job_id)) is not None]
        moved = (at_hand | found) - {line.job.job_id for line in lines}
        return LinesRead(tuple(lines), frozenset(moved))

    async def ensure(self, job_ids: Iterable[str]) -> None:
        """Have jobs recorded, and read into memory; raises `StoreUnavailableError`.

        One that is new is read too: operations may have entered its line while it was deleted.
        """
        wanted = list(job_ids)
        await self._store.jobs.ensure(wanted)
        await self.read(wanted)

    def line(self, job_id: str) -> JobLine | None:
        """Return a job with the head of its line, if it is in memory."""
        held = self._held.get(job_id)
        if held is None:
            return None
        self._held.move_to_end(job_id)
        return JobLine(job=held.job, operations=tuple(held.operations.values()))

    def job(self, job_id: str) -> JobRecord | None:
        """Return a job, if it is in memory."""
        held = self._held.get(job_id)
        return None if held is None else held.job

    def certain(self, job_id: str) -> JobLine | None:
        """Return a job with its line up to the first operation that may leave it again.

        While the write that puts operations in line is under way, it is not known whether others
        have to go before them.
        """
        line = self.line(job_id)
        if line is None or not self._uncertain:
            return line
        sure = takewhile(lambda one: one.operation_id not in self._uncertain, line.operations)
        return line.model_copy(update={"operations": tuple(sure)})

    def operation(self, job_id: str, operation_id: str) -> OperationRecord | None:
        """Return an open operation, if it is in memory."""
        held = self._held.get(job_id)
        return None if held is None else held.operations.get(operation_id)

    def agree(self, waiting: OperationRecord) -> bool:
        """Return False if an operation that is QUEUED in the record is not so in memory."""
        held = self._held.get(waiting.job_id or "")
        if held is None:
            return True
        there = held.operations.get(waiting.operation_id)
        return there.state is OperationState.QUEUED if there is not None else not held.whole

    async def verify(self) -> None:
        """Drop jobs whose active operations are not so in the record.

        A write that an earlier leader sent at the end of its term may arrive after the job was
        read. It looks at operations that nothing was noted about since the last call, at most
        `VERIFIED_AT_ONCE`. Raises `StoreUnavailableError`.
        """
        active = {
            operation.operation_id: operation
            for held in self._held.values()
            for operation in held.operations.values()
            if operation.state in ACTIVE_ON_HOST_STATES
        }
        unchanged = [key for key, one in active.items() if self._active.get(key) is one]
        # Those that were looked at have their turn again after all others.
        wanted = sorted(unchanged, key=self._verified.__contains__)[:VERIFIED_AT_ONCE]
        self._active = active
        self._verified = set(wanted) | (self._verified & set(unchanged))
        if self._verified.issuperset(unchanged):
            self._verified = set()
        known = await self._store.operation_queries.attempts(wanted) if wanted else {}
        for key in wanted:
            one = active[key]
            same = self.operation(one.job_id or "", key) is one
            state, epoch = known.get(key, (None, 0))
            if same and (epoch != one.epoch or state not in ACTIVE_ON_HOST_STATES):
                self.forget([one.job_id or ""])

    def forget(self, job_ids: Iterable[str]) -> None:
        """Drop jobs that were changed by a write that does not keep this memory."""
        for job_id in job_ids:
            self._mark_changed(job_id)
            self._drop(job_id)

    @contextmanager
    def entering(self, job_ids: Sequence[str]) -> Iterator[None]:
        """Enclose the write that puts new operations of these jobs in line.

        Until it has ended these jobs are not read from the record: the operations are not there
        yet, and the ones behind them must not overtake them. If it fails the jobs are dropped.
        """
        self._entering.update(job_ids)
        try:
            yield
        except BaseException:
            self.forget(job_ids)
            raise
        finally:
            for job_id in job_ids:
                self._mark_changed(job_id)
                self._entering[job_id] -= 1
                if not self._entering[job_id]:
                    del self._entering[job_id]
            self._uncertain = {
                key: job_id for key, job_id in self._uncertain.items() if job_id in self._entering
            }

    def append(self, operation: OperationRecord) -> None:
        """Put a new operation at the end of its job's line, unless it is there already.

        A client may have sent its id again, even with another request.
        """
        job_id = operation.job_id or ""
        self._mark_changed(job_id)
        held = self._held.get(job_id)
        if held is None or operation.operation_id in held.operations:
            return
        if job_id in self._entering:
            self._uncertain[operation.operation_id] = job_id
        if held.whole and len(held.operations) < MAX_OF_A_JOB:
            self._put(held, operation)
            self._evict()
        else:
            held.whole = False

    def replace(self, operation: OperationRecord) -> None:
        """Note what has become of an open operation, unless something later is noted already."""
        job_id = operation.job_id or ""
        self._mark_changed(job_id)
        held = self._held.get(job_id)
        there = held.operations.get(operation.operation_id) if held is not None else None
        if held is not None and there is not None and _age(there) <= _age(operation):
            self._put(held, operation)

    def replace_job(
        self, job_id: str, *, before: JobRecord | None, after: JobRecord | None
    ) -> None:
        """Note what a write has made of a job, of which memory had `before` when it began.

        If either is None, or memory has something else by now, the job is dropped.
        """
        held = self._held.get(job_id)
        if after is None or held is None or held.job is not before:
            self.forget([job_id])
            return
        self._mark_changed(job_id)
        held.job = after

    def remove(self, job_id: str, operation_id: str) -> None:
        """Note that an operation has ended."""
        self.usage.note(job_id)
        self._mark_changed(job_id)
        held = self._held.get(job_id)
        if held is not None:
            self._take(held, operation_id)

    def _is_at_hand(self, job_id: str) -> bool:
        held = self._held.get(job_id)
        if held is None:
            return False
        # Half of what one read brings is left, and there is more: it is time for the next read.
        return held.whole or len(held.operations) > LINE_HEAD // 2

    async def _load(self, job_ids: Sequence[str]) -> set[str]:
        """Read jobs into memory; return those that exist, or changed meanwhile.

        Intake has those scheduled whose operations it is putting in line.
        """
        absent = [job_id for job_id in job_ids if job_id not in self._entering]
        if not absent:
            return set()
        loading = _Loading()
        self._loading.append(loading)
        try:
            read = await self._store.jobs.lines(absent)
        finally:
            self._loading.remove(loading)
        for line in read.lines:
            if line.job.job_id not in loading.changed:
                self._hold(line)
        existing = {line.job.job_id for line in read.lines}
        return existing | read.moved | (loading.changed & set(absent))

    def _hold(self, line: JobLine) -> None:
        self._drop(line.job.job_id)
        held = _HeldLine(line.job, {}, whole=len(line.operations) < LINE_HEAD)
        self._held[line.job.job_id] = held
        for operation in line.operations:
            self._put(held, operation)
        self._evict()

    def _drop(self, job_id: str) -> None:
        held = self._held.pop(job_id, None)
        if held is not None:
            for operation_id in list(held.operations):
                self._take(held, operation_id)

    def _put(self, held: _HeldLine, operation: OperationRecord) -> None:
        before = held.operations.get(operation.operation_id)
        self._operations += before is None
        self._input_bytes -= _size(before)
        kept = self._with_input_if_needed(operation)
        self._input_bytes += _size(kept)
        held.operations[operation.operation_id] = kept

    def _take(self, held: _HeldLine, operation_id: str) -> None:
        before = held.operations.pop(operation_id, None)
        self._operations -= before is not None
        self._input_bytes -= _size(before)

    def _with_input_if_needed(self, operation: OperationRecord) -> OperationRecord:
        """Return an operation as it is kept: with its input until it starts, and if there is room.

        What is dispatched again is read from the record.
        """
        if operation.input_json is None:
            return operation
        waits = operation.state is OperationState.QUEUED
        if waits and self._input_bytes + _size(operation) <= MAX_INPUT_BYTES:
            return operation
        return operation.model_copy(update={"input_json": None})

    def _evict(self) -> None:
        """Drop the jobs that were not used for the longest time, down to the bounds."""
        while self._operations > MAX_OPERATIONS or len(self._held) > MAX_JOBS:
            oldest = next((one for one in self._held if one not in self._entering), None)
            if oldest is None:
                return
            self._drop(oldest)

    def _mark_changed(self, job_id: str) -> None:
        for loading in self._loading:
            loading.changed.add(job_id)


def _age(operation: OperationRecord) -> tuple[int, int, bool]:
    """Order what became of an operation; putting it back in the queue drops its job instead."""
    return operation.epoch, operation.seq, operation.state is not OperationState.QUEUED


def _size(operation: OperationRecord | None) -> int:
    return len(operation.input_json or "") if operation is not None else 0
