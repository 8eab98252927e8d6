"""What one attempt of an operation reports: full state each time, numbered from 1."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from modelyard.contract.errors import ErrorInfo
from modelyard.contract.messages import HostCommand, OperationReport, Progress
from modelyard.contract.states import JobState, OperationState, Phase
from modelyard.process.crash_points import crash_point
from worker.attempts.cancellation import Cancellation


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended, and what is true of the job's container after it."""

    state: OperationState
    job_state: JobState | None = None
    """None: it says nothing new of the job."""
    container_id: str | None = None
    error: ErrorInfo | None = None
    result_json: str | None = None


async def always_held() -> None:
    """Stand for a lease that is never lost."""


class Attempt:
    """The reports of one attempt. `publish` gets each one, in order, and must not block."""

    def __init__(
        self,
        command: HostCommand,
        publish: Callable[[OperationReport], None],
        *,
        held: Callable[[], Awaitable[None]] = always_held,
    ) -> None:
        """`held` returns at once while the lease is held, and never after it is lost."""
        self.command = command
        self._publish = publish
        self._held = held
        self._silenced = False
        self.cancellation = Cancellation()
        self.latest = self._report(seq=1, state=OperationState.RUNNING)
        """At first `accepted`: RUNNING without a phase."""

    @property
    def ended(self) -> bool:
        return self.latest.state.terminal

    async def may_go_on(self) -> None:
        """Stand here before anything new is begun in the job's name; see `Lease.held`."""
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

    def end(self, ending: Outcome) -> None:
        """Report the end; a second one says nothing."""
        if not self.ended:
            crash_point("worker.before_end")
        self._send(
            self._report(
                seq=self.latest.seq + 1,
                state=ending.state,
                job_state=ending.job_state,
                container_id=ending.container_id or self.latest.container_id,
                error=ending.error,
                result_json=ending.result_json,
            )
        )

    def silence(self) -> None:
        """Report nothing any more: the record has moved on."""
        self._silenced = True

    def _send(self, report: OperationReport) -> None:
        if self.ended or self._silenced:
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
