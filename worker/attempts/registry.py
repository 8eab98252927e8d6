"""The attempts that this incarnation knows; it refuses repeated and stale commands.

No I/O. A refused command is not an error: the dispatcher's record is authoritative, and its
sweep sends again what is still needed.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.messages import (
    CancelOperation,
    HostCommand,
    OperationReport,
    RepeatReport,
)
from modelyard.contract.states import VERB_RULES, OperationState
from worker.attempts.attempt import Attempt, PhaseEnded, lease_always_held
from worker.attempts.transfer import ContentTransfer

MAX_ENDED = 10_000
"""Ended attempts that are remembered, so that none of them runs twice. Those whose last report is
not confirmed are remembered beyond this number."""
MAX_RESULT_BYTES_KEPT = 64 << 20
"""Bytes of all results in the kept reports, as UTF-8. Above them the oldest confirmed reports that
have a result lose it; while the unconfirmed ones alone have more, no command is taken."""
MAX_CANCELS = 10_000
"""Cancels that are remembered because they came before their commands."""
MAX_JOBS = 100_000
"""Jobs whose highest generation is remembered."""


class CommandDecision(StrEnum):
    """The registry's decision about a command."""

    NEW = "new"
    """The command opens an attempt."""
    REPEATED = "repeated"
    """The attempt is known already: its latest report is sent again."""
    STALE_EPOCH = "stale_epoch"
    """A later attempt is known, or the dispatcher has sent a cancel that makes this epoch stale."""
    STALE_GENERATION = "stale_generation"
    """A container of the job with a higher generation is known. An inference is reported as
    refused; other operations are retried when a dispatcher finds them not accepted."""


@dataclass(frozen=True, slots=True)
class DecidedCommand:
    """The decision about a command, with the attempts concerned."""

    decision: CommandDecision
    attempt: Attempt | None = None
    """The attempt that is to run or already runs; None if the command was refused."""
    superseded: Attempt | None = None
    """The earlier attempt of the same operation, if it still runs."""
    report: OperationReport | None = None
    """The latest report of an attempt that is known already, or the refusal of an inference."""


@dataclass(slots=True)
class _Ended:
    """What is kept of an ended attempt. Its command is dropped: the input may be large."""

    report: OperationReport
    """Without its result once it was confirmed and there was no room for the result any more."""
    result_bytes: int


class AttemptRegistry:
    """The attempts of one incarnation, by operation id."""

    def __init__(
        self,
        publish: Callable[[OperationReport], None],
        *,
        held: Callable[[], Awaitable[None]] = lease_always_held,
        phase_ended: PhaseEnded = lambda _verb, _phase, _seconds: None,
        transfer: ContentTransfer | None = None,
    ) -> None:
        """Each attempt gets all of these; `held` checks the lease."""
        self._transfer = transfer
        self._phase_ended = phase_ended
        self.on_silenced: Callable[[Attempt], None] = lambda _: None
        """Called with an attempt that reports nothing more although it has not ended."""
        self.on_decided: Callable[[str], None] = lambda _: None
        """Called with the decision about each command."""
        self._held = held
        self._publish = publish
        self._open: dict[str, Attempt] = {}
        self._unconfirmed: dict[str, _Ended] = {}
        """Ended attempts whose last report the broker has not confirmed."""
        self._unconfirmed_bytes = 0
        self._ended: OrderedDict[str, _Ended] = OrderedDict()
        """Ended attempts whose last report is confirmed, oldest first."""
        self._with_result: OrderedDict[str, _Ended] = OrderedDict()
        """Those of them whose result is still kept."""
        self._confirmed_bytes = 0
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._generations: OrderedDict[str, int] = OrderedDict()
        self._busy_views: dict[int, set[str]] = {}
        self._cancels: OrderedDict[str, CancelOperation] = OrderedDict()

    @property
    def running(self) -> int:
        return len(self._open)

    @contextmanager
    def busy_jobs(self) -> Iterator[set[str]]:
        """Yield the ids of the jobs with an open attempt; attempts opened meanwhile are added."""
        busy = {attempt.command.job_id for attempt in self._open.values()}
        self._busy_views[id(busy)] = busy
        try:
            yield busy
        finally:
            del self._busy_views[id(busy)]

    def record_generations(self, containers: Iterable[tuple[str, int]]) -> None:
        """Remember the generations of existing containers, given as (job id, generation)."""
        for job_id, generation in containers:
            self._record_generation(job_id, generation)

    def take(self, command: HostCommand) -> DecidedCommand:
        """Decide about one command; open an attempt if it is new."""
        decided = self._take(command)
        self.on_decided(decided.decision.value)
        return decided

    def _take(self, command: HostCommand) -> DecidedCommand:
        opened = self._open.get(command.operation_id)
        known, latest = self._last_of(command.operation_id)
        if command.epoch < known:
            return DecidedCommand(CommandDecision.STALE_EPOCH)
        cancel = self._cancels.get(command.operation_id)
        if cancel is not None and (
            command.epoch < cancel.epoch
            or (command.epoch == cancel.epoch and cancel.reason == "stale")
        ):
            return DecidedCommand(CommandDecision.STALE_EPOCH)
        if command.epoch == known:
            return DecidedCommand(CommandDecision.REPEATED, opened, report=latest)
        if command.generation < self._generations.get(command.job_id, 0):
            return DecidedCommand(CommandDecision.STALE_GENERATION, report=_refusal(command))
        self._record_generation(command.job_id, command.generation)
        self._drop_ended(command.operation_id)
        self._cancels.pop(command.operation_id, None)
        attempt = Attempt(
            command,
            self._publish,
            held=self._held,
            phase_ended=self._phase_ended,
            transfer=self._transfer,
        )
        if opened is not None:
            self.silence(opened)
        if cancel is not None and cancel.epoch == command.epoch:
            attempt.cancellation.request(cancel.reason)
        self._open[command.operation_id] = attempt
        for busy in self._busy_views.values():
            busy.add(command.job_id)
        return DecidedCommand(CommandDecision.NEW, attempt, superseded=opened)

    def cancel(self, cancel: CancelOperation) -> OperationReport | None:
        """Cancel the attempt that `cancel` names, now or when its command comes.

        Returns the last report of an attempt that has already ended: the caller sends it again.
        """
        operation_id = cancel.operation_id
        opened = self._open.get(operation_id)
        known, latest = self._last_of(operation_id)
        if cancel.epoch > known or (cancel.epoch == known and cancel.reason == "stale"):
            self._remember_cancel(cancel)
        if cancel.epoch != known or latest is None:
            return None
        if opened is not None and cancel.reason == "stale":
            self.silence(opened)
        if opened is not None and not opened.ended:
            opened.cancellation.request(cancel.reason)
            return None
        return latest if cancel.reason != "stale" else None

    def silence(self, attempt: Attempt) -> None:
        """Let an attempt report nothing more: the dispatcher no longer counts on it."""
        attempt.stop_reporting()
        self.on_silenced(attempt)

    def latest(self, asked: RepeatReport) -> OperationReport | None:
        """Return the latest report of the attempt asked for; None if it is not known."""
        known, latest = self._last_of(asked.operation_id)
        return latest if known == asked.epoch else None

    def has_open_attempt(self, job_id: str, generation: int) -> bool:
        """Return whether an attempt on this generation of the job is open."""
        commands = (attempt.command for attempt in self._open.values())
        return any((it.job_id, it.generation) == (job_id, generation) for it in commands)

    def close(self, attempt: Attempt) -> None:
        """Close an attempt; keep its last report, which may be asked for again."""
        operation_id = attempt.command.operation_id
        if self._open.get(operation_id) is attempt:
            del self._open[operation_id]
            if attempt.ended:
                report = attempt.latest
                ended = _Ended(report, _result_bytes(report))
                self._unconfirmed[operation_id] = ended
                self._unconfirmed_bytes += ended.result_bytes
                self._bound_ended()

    def confirmed(self, reports: Iterable[OperationReport]) -> None:
        """Note the reports that the broker has confirmed."""
        for report in reports:
            ended = self._unconfirmed.get(report.operation_id)
            if ended is None or ended.report.epoch != report.epoch or not report.state.terminal:
                continue
            del self._unconfirmed[report.operation_id]
            self._unconfirmed_bytes -= ended.result_bytes
            self._ended[report.operation_id] = ended
            if ended.result_bytes:
                self._with_result[report.operation_id] = ended
                self._confirmed_bytes += ended.result_bytes
        self._bound_ended()

    async def room(self) -> None:
        """Return once results may come in: most of what has ended is confirmed.

        What is not confirmed can't be dropped. So whoever takes commands waits here before.
        """
        await self._has_room.wait()

    def _bound_ended(self) -> None:
        """Drop what is confirmed and too much: results first, then what attempts there were."""
        while (
            self._with_result
            and self._unconfirmed_bytes + self._confirmed_bytes > MAX_RESULT_BYTES_KEPT
        ):
            _, ended = self._with_result.popitem(last=False)
            ended.report = _without_result(ended.report)
            self._confirmed_bytes -= ended.result_bytes
        while len(self._ended) > MAX_ENDED:
            self._drop_ended(next(iter(self._ended)))
        if self._unconfirmed_bytes > MAX_RESULT_BYTES_KEPT or len(self._unconfirmed) > MAX_ENDED:
            self._has_room.clear()
        else:
            self._has_room.set()

    def _remember_cancel(self, cancel: CancelOperation) -> None:
        remembered = self._cancels.get(cancel.operation_id)
        if remembered is None or remembered.epoch <= cancel.epoch:
            self._cancels[cancel.operation_id] = cancel
            self._cancels.move_to_end(cancel.operation_id)
        while len(self._cancels) > MAX_CANCELS:
            self._cancels.popitem(last=False)

    def _last_of(self, operation_id: str) -> tuple[int, OperationReport | None]:
        """Return the epoch of an operation's latest attempt, and its last report.

        The epoch is 0 if no attempt is known.
        """
        opened = self._open.get(operation_id)
        if opened is not None:
            return opened.command.epoch, opened.latest
        ended = self._unconfirmed.get(operation_id) or self._ended.get(operation_id)
        return (ended.report.epoch, ended.report) if ended else (0, None)

    def _record_generation(self, job_id: str, generation: int) -> None:
        self._generations[job_id] = max(generation, self._generations.get(job_id, 0))
        self._generations.move_to_end(job_id)
        while len(self._generations) > MAX_JOBS:
            self._generations.popitem(last=False)

    def _drop_ended(self, operation_id: str) -> None:
        """Forget an ended attempt, if there is one."""
        self._ended.pop(operation_id, None)
        if ended := self._with_result.pop(operation_id, None):
            self._confirmed_bytes -= ended.result_bytes
        if ended := self._unconfirmed.pop(operation_id, None):
            self._unconfirmed_bytes -= ended.result_bytes


def _result_bytes(report: OperationReport) -> int:
    content = report.result_content.content if report.result_content else b""
    return len((report.result_json or "").encode()) + len(content)


def _without_result(report: OperationReport) -> OperationReport:
    """Return what is told of an attempt whose result is not kept, if it is asked for once more.

    The broker has confirmed `report`, so this counts only if the queue with it was lost: without it
    the operation would never end.
    """
    error = ErrorInfo.of(
        ErrorCode.WORKER_ERROR,
        "The report of the operation's end was lost on its way, and its worker does not keep the "
        "result any more.",
    )
    lost = {"result_json": None, "result_content": None, "error": error}
    return report.model_copy(update={"state": OperationState.FAILED, **lost})


def _refusal(command: HostCommand) -> OperationReport | None:
    """Return the report that an inference was refused, which proves that it never began here.

    Without this report a dispatcher could never try again: the inference might be running.
    """
    if not VERB_RULES[command.verb].shared:
        return None
    return OperationReport(
        operation_id=command.operation_id,
        epoch=command.epoch,
        seq=1,
        job_id=command.job_id,
        generation=command.generation,
        state=OperationState.FAILED,
        error=ErrorInfo(
            code=ErrorCode.NOT_ACCEPTED,
            message="Its host has a newer container of the job.",
        ),
    )
