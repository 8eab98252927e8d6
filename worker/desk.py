"""Which commands this boot has taken: what comes twice, too late or for somebody else is told off.

Pure bookkeeping. No refusal is an error: the dispatcher's record is what counts, and its sweep
repairs.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from modelyard.contract.messages import HostCommand, OperationReport
from worker.account import Account

MAX_ENDED = 10_000
"""Ended operations whose last report is kept."""
MAX_RESULT_BYTES_KEPT = 64 << 20
"""Bytes of results in them as UTF-8, all together."""
MAX_JOBS = 100_000
"""Jobs whose newest generation is remembered."""


class Decision(StrEnum):
    """What becomes of a command."""

    NEW = "new"
    """An attempt that was not seen before."""
    REPEATED = "repeated"
    """Seen before: its latest report is sent again."""
    STALE_EPOCH = "stale_epoch"
    """A later attempt of the operation is known."""
    STALE_GENERATION = "stale_generation"
    """A later container of the job is known."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A decision, and what it is about."""

    decision: Decision
    account: Account | None = None
    """The attempt that is to run, or runs already."""
    superseded: Account | None = None
    """The earlier attempt of the same operation, if it still runs."""
    report: OperationReport | None = None
    """The latest of the attempt; None for one that is refused."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """All that is kept of an attempt that has ended: its input may be large."""

    report: OperationReport
    result_bytes: int


class Desk:
    """The attempts that this boot knows, by operation."""

    def __init__(self, publish: Callable[[OperationReport], None]) -> None:
        """`publish` is where the accounts report to."""
        self._publish = publish
        self._open: dict[str, Account] = {}
        self._ended: OrderedDict[str, _Ended] = OrderedDict()
        self._ended_bytes = 0
        self._generations: OrderedDict[str, int] = OrderedDict()

    @property
    def running(self) -> int:
        return len(self._open)

    def saw_containers(self, containers: Iterable[tuple[str, int]]) -> None:
        """Note the generations (job, generation) that were found on the engine."""
        for job_id, generation in containers:
            self._saw(job_id, generation)

    def take(self, command: HostCommand) -> Taken:
        """Decide about one command; if it is new, an account is opened for it."""
        opened = self._open.get(command.operation_id)
        latest = opened.latest if opened else self._last_report(command.operation_id)
        if latest is not None and command.epoch < latest.epoch:
            return Taken(Decision.STALE_EPOCH)
        if latest is not None and command.epoch == latest.epoch:
            return Taken(Decision.REPEATED, opened, report=latest)
        if command.generation < self._generations.get(command.job_id, 0):
            return Taken(Decision.STALE_GENERATION)
        self._saw(command.job_id, command.generation)
        self._drop_ended(command.operation_id)
        account = Account(command, self._publish)
        self._open[command.operation_id] = account
        return Taken(Decision.NEW, account, superseded=opened, report=account.latest)

    def close(self, account: Account) -> None:
        """Keep an ended account's last report for those who ask again."""
        operation_id = account.command.operation_id
        if self._open.get(operation_id) is account:
            del self._open[operation_id]
            if account.ended:
                result = account.latest.result_json or ""
                ended = _Ended(account.latest, len(result.encode()))
                self._ended[operation_id] = ended
                self._ended_bytes += ended.result_bytes
        while self._ended and (
            len(self._ended) > MAX_ENDED or self._ended_bytes > MAX_RESULT_BYTES_KEPT
        ):
            self._drop_ended(next(iter(self._ended)))

    def _last_report(self, operation_id: str) -> OperationReport | None:
        ended = self._ended.get(operation_id)
        return ended.report if ended else None

    def _saw(self, job_id: str, generation: int) -> None:
        self._generations[job_id] = max(generation, self._generations.get(job_id, 0))
        self._generations.move_to_end(job_id)
        while len(self._generations) > MAX_JOBS:
            self._generations.popitem(last=False)

    def _drop_ended(self, operation_id: str) -> None:
        ended = self._ended.pop(operation_id, None)
        if ended is not None:
            self._ended_bytes -= ended.result_bytes
