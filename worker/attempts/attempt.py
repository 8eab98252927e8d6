"""One attempt of an operation and its reports: each carries the full state and a number from 1."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from modelyard.contract.errors import ErrorInfo
from modelyard.contract.messages import HostCommand, OperationReport, Progress
from modelyard.contract.states import JobState, OperationState, Phase
from modelyard.process.crash_points import crash_point
from worker.attempts.cancellation import Cancellation


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended, and the state of the job's container afterwards."""

    state: OperationState
    job_state: JobState | None = None
    """None: the job keeps its state."""
    container_id: str | None = None
    error: ErrorInfo | None = None
    result_json: str | None = None


async def lease_always_held() -> None:
    """Return at once: the default for `held` where no lease can be lost."""


class Attempt:
    """One attempt of an operation: its command, its cancellation and its latest report."""

    def __init__(
        self,
        command: HostCommand,
        publish: Callable[[OperationReport], None],
        *,
        held: Callable[[], Awaitable[None]] = lease_always_held,
    ) -> None:
        """Open the attempt with its first report.

        `publish` receives each later report, in order, and must not block. `held` returns at once
        while the lease is held, and never returns once the lease is lost.
        """
        self.command = command
        self._publish = publish
        self._held = held
        self._reporting_stopped = False
        self.cancellation = Cancellation()
        self.latest = self._report(seq=1, state=OperationState.RUNNING)
        """The newest report. The first one means `accepted`: RUNNING without a phase."""

    @property
    def ended(self) -> bool:
        return self.latest.state.terminal

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
        self._send(
            self._report(
                seq=self.latest.seq + 1,
                state=OperationState.RUNNING,
                phase=phase,
                progress=progress,
                container_id=container_id or self.latest.container_id,
            )
        )

    def end(self, outcome: Outcome) -> None:
        """Report the outcome; a second call does nothing."""
        if not self.ended:
            crash_point("worker.before_end")
        self._send(
            self._report(
                seq=self.latest.seq + 1,
                state=outcome.state,
                job_state=outcome.job_state,
                container_id=outcome.container_id or self.latest.container_id,
                error=outcome.error,
                result_json=outcome.result_json,
            )
        )

    def stop_reporting(self) -> None:
        """Publish no more reports: the dispatcher no longer counts on this attempt."""
        self._reporting_stopped = True

    def _send(self, report: OperationReport) -> None:
        if self.ended or self._reporting_stopped:
            return
        self.latest = report
        self._publish(report)

    def _report(  # noqa: PLR0913 - the fields of a report
        self,
        *,
        seq: int,
        state: OperationState,
        phase: Phase | None = None,
        progress: Progress | None = None,
        job_state: JobState | None = None,
        container_id: str | None = None,
        error: ErrorInfo | None = None,
        result_json: str | None = None,
    ) -> OperationReport:
        return OperationReport(
            operation_id=self.command.operation_id,
            epoch=self.command.epoch,
            seq=seq,
            job_id=self.command.job_id,
            generation=self.command.generation,
            state=state,
            phase=phase,
            progress=progress,
            job_state=job_state,
            container_id=container_id,
            error=error,
            result_json=result_json,
        )
