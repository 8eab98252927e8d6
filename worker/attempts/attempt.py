"""One attempt of an operation and its reports: each carries the full state and a number from 1."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from modelyard.contract.capacity.footprints import Footprint
from modelyard.contract.content.results import ResultContent
from modelyard.contract.content.transfers import StoredResult
from modelyard.contract.errors import ErrorInfo
from modelyard.contract.messages import HostCommand, OperationReport, Progress
from modelyard.contract.states import JobState, OperationState, Phase, Verb
from modelyard.process.crash_points import crash_point
from worker.attempts.cancellation import Cancellation
from worker.attempts.transfer import ContentTransfer, NoTransfer

QUIET_S = 0.05
"""Seconds for which an attempt that has begun reports nothing but its end; most inferences are over
by then, and their end is their only report."""

PhaseEnded = Callable[[Verb, Phase | None, float], None]
"""Called with the phase that an attempt has left (None before its first), and its seconds."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended, and the state of the job's container afterwards."""

    state: OperationState
    job_state: JobState | None = None
    """None: the job keeps its state."""
    container_id: str | None = None
    error: ErrorInfo | None = None
    result_json: str | None = None
    """The result, if it is JSON."""
    result_content: ResultContent | None = None
    """The result, if it is not JSON."""
    result_stored: StoredResult | None = None
    """The result, if it is large."""
    footprint: Footprint | None = None
    """What the model was measured to take, if that is news."""


async def lease_always_held() -> None:
    """Return at once: the default for `held` where no lease can be lost."""


@dataclass(frozen=True, slots=True)
class _Standing:
    """Where an attempt stands: the fields of a report that change."""

    seq: int
    state: OperationState = OperationState.RUNNING
    phase: Phase | None = None
    progress: Progress | None = None
    job_state: JobState | None = None
    container_id: str | None = None
    error: ErrorInfo | None = None
    result_json: str | None = None
    result_content: ResultContent | None = None
    result_stored: StoredResult | None = None
    footprint: Footprint | None = None


class Attempt:
    """One attempt of an operation: its command, its cancellation and its latest report."""

    def __init__(
        self,
        command: HostCommand,
        publish: Callable[[OperationReport], None],
        *,
        held: Callable[[], Awaitable[None]] = lease_always_held,
        phase_ended: PhaseEnded = lambda _verb, _phase, _seconds: None,
        transfer: ContentTransfer | None = None,
    ) -> None:
        """Open the attempt with its first report, which means `accepted`: RUNNING without a phase.

        `publish` receives each later report, in order, and must not block. `held` returns at once
        while the lease is held, and never returns once the lease is lost. `phase_ended` is called
        at the end of each phase. `transfer` is for large inputs and results.
        """
        self.transfer = transfer or NoTransfer()
        self._phase_ended = phase_ended
        self._phase_since = time.monotonic()
        self.command = command
        self._publish = publish
        self._held = held
        self._reporting_stopped = False
        self.cancellation = Cancellation()
        self._standing = _Standing(seq=1)
        self._latest: OperationReport | None = None
        """The report of `_standing`; None until somebody wants it."""
        self._began_at: float | None = None
        self._quiet: asyncio.TimerHandle | None = None
        """Set for `QUIET_S` seconds after the attempt began."""

    @property
    def latest(self) -> OperationReport:
        """The newest report, published or not."""
        if self._latest is None:
            self._latest = self._report()
        return self._latest

    @property
    def phase(self) -> Phase | None:
        """What the attempt is doing; None before its first phase and after its end."""
        return self._standing.phase

    @property
    def ended(self) -> bool:
        return self._standing.state.terminal

    @property
    def begun(self) -> bool:
        return self._began_at is not None

    def begin(self) -> None:
        """Count the time from now, and publish no report but the end within `QUIET_S` seconds."""
        self._began_at = time.monotonic()
        self._quiet = asyncio.get_running_loop().call_later(QUIET_S, self._end_quiet)

    async def require_lease(self) -> None:
        """Return at once while the lease is held; never return once it is lost.

        Verbs call this before each step with an effect, such as creating or starting a container,
        so that an attempt whose lease was lost begins nothing more. See `Lease.held`.
        """
        await self._held()

    def report(
        self, phase: Phase, progress: Progress | None = None, *, container_id: str | None = None
    ) -> None:
        """Report that the attempt is at `phase`."""
        self._move_on(
            _Standing(
                seq=self._standing.seq + 1,
                phase=phase,
                progress=progress,
                container_id=container_id or self._standing.container_id,
            )
        )

    def end(self, outcome: Outcome) -> None:
        """Report the outcome; a second call does nothing."""
        if not self.ended:
            crash_point("worker.before_end")
        self._move_on(
            _Standing(
                seq=self._standing.seq + 1,
                state=outcome.state,
                job_state=outcome.job_state,
                container_id=outcome.container_id or self._standing.container_id,
                error=outcome.error,
                result_json=outcome.result_json,
                result_content=outcome.result_content,
                result_stored=outcome.result_stored,
                footprint=outcome.footprint,
            )
        )

    def stop_reporting(self) -> None:
        """Publish no more reports: the dispatcher no longer counts on this attempt."""
        self._reporting_stopped = True
        self._stop_quiet()

    def _move_on(self, standing: _Standing) -> None:
        if self.ended or self._reporting_stopped:
            return
        if standing.phase is not self._standing.phase or standing.state.terminal:
            now = time.monotonic()
            self._phase_ended(self.command.verb, self._standing.phase, now - self._phase_since)
            self._phase_since = now
        self._standing = standing
        self._latest = None
        if self.ended:
            self._stop_quiet()
        if self._quiet is None:
            self._publish(self.latest)

    def _end_quiet(self) -> None:
        self._quiet = None
        self._publish(self.latest)

    def _stop_quiet(self) -> None:
        if self._quiet is not None:
            self._quiet.cancel()
            self._quiet = None

    def _report(self) -> OperationReport:
        standing = self._standing
        return OperationReport(
            operation_id=self.command.operation_id,
            epoch=self.command.epoch,
            seq=standing.seq,
            job_id=self.command.job_id,
            generation=self.command.generation,
            state=standing.state,
            phase=standing.phase,
            progress=standing.progress,
            job_state=standing.job_state,
            container_id=standing.container_id,
            error=standing.error,
            result_json=standing.result_json,
            result_content=standing.result_content,
            result_stored=standing.result_stored,
            footprint=standing.footprint,
            ran_s=None if self._began_at is None else time.monotonic() - self._began_at,
        )
