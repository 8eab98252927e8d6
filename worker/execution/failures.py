"""After a failure: find the cause, keep the log's end, and have what is half-made removed."""

import asyncio

from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.messages import HostCommand
from modelyard.contract.retries import is_retried
from modelyard.contract.states import JobState, OperationState, Verb
from modelyard.process.tasks import TaskGroup
from worker.attempts.attempt import Attempt, Outcome
from worker.attempts.cancellation import AttemptCancelledError
from worker.containers.best_effort import best_effort
from worker.containers.lifecycle import ContainerLifecycle
from worker.containers.readiness import exited
from worker.engine.protocol import ContainerExit, ContainerFacts, ContainerRuntime
from worker.execution.cleanup import Cleanup
from worker.model_server.client import NoAnswerError
from worker.model_server.profiles import InMemory, talk_of

LOOK_S = 40.0
"""Seconds to find out what is true of the container."""
REPORT_S = 0.7
"""Seconds after which an interrupted attempt is reported, however far the cleaning is."""
LOG_S = 5.0
DEATH_S = 2.0
"""Seconds for the engine to notice that a process whose connections broke has died."""
LOG_LINES = 20
LOG_CHARS = 2_048

_CLEANED = frozenset({Verb.DEPLOY_CREATE, Verb.DEPLOY_LOAD, Verb.TEMP})
"""Verbs whose failure ends the container: what they half made is of no use."""
_MAKING = frozenset({Verb.DEPLOY_CREATE, Verb.TEMP})
"""Verbs that make a container."""
_SPARED = frozenset({ErrorCode.UNSUPPORTED_VERB})
_DEATHS = frozenset(
    {
        ErrorCode.EXITED,
        ErrorCode.OOM_KILLED,
        ErrorCode.DISK_QUOTA_EXCEEDED,
        ErrorCode.CONTAINER_MISSING,
    }
)
_MAY_BE_DEATHS = frozenset(
    {
        ErrorCode.NOT_READY,
        ErrorCode.LOAD_FAILED,
        ErrorCode.UNLOAD_FAILED,
        ErrorCode.INFERENCE_FAILED,
    }
)
"""What a server that has died looks like from outside."""


class FailureOutcomes:
    """Turns the error of an attempt into its ending."""

    def __init__(
        self, runtime: ContainerRuntime, containers: ContainerLifecycle, cleanup: Cleanup
    ) -> None:
        self._runtime = runtime
        self._containers = containers
        self._cleanup = cleanup

    async def of(self, command: HostCommand, error: ModelyardError) -> Outcome:
        """Return how the attempt ended, after cleaning up what the verb must not leave.

        Trouble on the way is logged and costs a detail at the most, never the ending.
        """
        if command.verb is Verb.TERMINATE or error.code in _SPARED:
            return _ending(error, None)
        if command.verb is Verb.DEPLOY_LOAD and is_retried(command.verb, error.code):
            # It says nothing of the container, which the next attempt needs.
            return _ending(error, None)
        facts: ContainerFacts | None = None
        async with best_effort("aftermath.no_look", LOOK_S, operation_id=command.operation_id):
            facts = await self._containers.find(command)
            error = self._of_our_hand(await self._cause(command, error, facts), facts)
        if command.verb not in _CLEANED and error.code not in _DEATHS:
            return _ending(error, None, facts)
        if facts is not None and facts.ever_started:
            if facts.exit_code is not None:
                error.detail.setdefault("exit_code", facts.exit_code)
            async with best_effort("aftermath.no_log", LOG_S, operation_id=command.operation_id):
                await self._add_log(error, facts)
        await self._cleanup.remove(command)
        return _ending(error, JobState.FAILED, facts)

    async def of_cancellation(
        self, attempt: Attempt, cancellation: AttemptCancelledError
    ) -> Outcome:
        """End an attempt that was interrupted while it ran; the caller holds the job.

        The end is reported after `REPORT_S` at the latest, and after the cleaning if that is
        quicker. Returns when both are done.
        """
        command = attempt.command
        job_state = _left_behind(command, cancellation)
        if job_state is None:
            return _interrupted(cancellation, None)
        async with TaskGroup() as tasks:
            cleaning = tasks.create_task(self._clean(attempt, cancellation, job_state))
            await asyncio.wait((cleaning,), timeout=REPORT_S)
            ending = _interrupted(cancellation, cleaning.result() if cleaning.done() else job_state)
            attempt.end(ending)
        return ending

    async def of_withdrawal(
        self, command: HostCommand, cancellation: AttemptCancelledError
    ) -> Outcome:
        """End an attempt that was interrupted before it began; nobody holds the job for it."""
        job_state = _left_behind(command, cancellation)
        if command.verb not in _MAKING or job_state is None:
            return _interrupted(cancellation, None)
        looked = False
        facts: ContainerFacts | None = None
        async with best_effort("aftermath.no_look", REPORT_S, operation_id=command.operation_id):
            facts = await self._containers.find(command)
            looked = True
        if not looked or _made_by(command, facts):
            self._cleanup.remove_later(command)
        elif facts is not None:
            return _interrupted(cancellation, None)  # it was there before this operation
        return _interrupted(cancellation, job_state)

    async def _clean(
        self, attempt: Attempt, cancellation: AttemptCancelledError, job_state: JobState
    ) -> JobState | None:
        """Clean up after an interruption; return what is true of the job then."""
        command = attempt.command
        if job_state is JobState.CREATED:
            return await self._half_loaded(attempt)
        if command.verb is Verb.DEPLOY_CREATE and cancellation.reason != "timed_out":
            facts: ContainerFacts | None = None
            async with best_effort("aftermath.no_look", LOOK_S, operation_id=command.operation_id):
                facts = await self._containers.find(command)
            if facts is not None and not _made_by(command, facts):
                return None  # a CREATE of what was there already
        await self._cleanup.remove(command)
        if command.verb in _MAKING:
            # The engine may have been asked to create it, and not have come to it yet.
            self._cleanup.remove_later(command)
        return job_state

    async def _half_loaded(self, attempt: Attempt) -> JobState | None:
        """Have nothing in memory of a model that was being loaded."""
        command = attempt.command
        if attempt.latest.phase is None:
            return None  # it had not begun with it
        async with best_effort("aftermath.not_stopped", LOOK_S, operation_id=command.operation_id):
            facts = await self._containers.find(command)
            if facts is None:
                return None
            await self._containers.halt(facts)
        return JobState.CREATED

    async def _cause(
        self, command: HostCommand, error: ModelyardError, facts: ContainerFacts | None
    ) -> ModelyardError:
        """Return the death of the container if that is behind the error, else the error."""
        if error.code in _DEATHS or error.code is ErrorCode.ENGINE_UNAVAILABLE:
            return error
        if facts is None:
            gone = command.verb not in _CLEANED
            return ModelyardError(ErrorCode.CONTAINER_MISSING) if gone else error
        if error.code not in _MAY_BE_DEATHS:
            return error
        if isinstance(error, NoAnswerError):
            facts = await self._settled(facts)
        if facts.ever_started and not facts.running and _should_run(command):
            return exited(ContainerExit(facts.exit_code or 0, facts.oom_killed))
        return error

    def _of_our_hand(self, error: ModelyardError, facts: ContainerFacts | None) -> ModelyardError:
        """Return why this worker has ended the container, if it has, else the error."""
        why = None if facts is None else self._containers.health.over_disk.get(facts.id)
        if facts is None or why is None or error.code not in _DEATHS:
            return error
        limit = facts.labels.disk if facts.labels else None
        return ModelyardError(ErrorCode.DISK_QUOTA_EXCEEDED, why, limit=limit)

    async def _settled(self, facts: ContainerFacts) -> ContainerFacts:
        try:
            async with asyncio.timeout(DEATH_S):
                await self._runtime.wait_exit(facts.id)
        except TimeoutError:
            pass
        return await self._runtime.inspect(facts.id)

    async def _add_log(self, error: ModelyardError, facts: ContainerFacts) -> None:
        tail = await self._runtime.log_tail(facts.id, lines=LOG_LINES)
        error.detail.setdefault("log_tail", tail[-LOG_CHARS:])


def _left_behind(command: HostCommand, cancellation: AttemptCancelledError) -> JobState | None:
    """Return what becomes of a job whose attempt is interrupted; None if nothing does."""
    if command.verb not in _CLEANED:
        return None
    if cancellation.reason == "timed_out":
        return JobState.FAILED
    return JobState.CREATED if command.verb is Verb.DEPLOY_LOAD else JobState.TERMINATED


def _made_by(command: HostCommand, facts: ContainerFacts | None) -> bool:
    labels = facts.labels if facts else None
    return labels is not None and labels.operation_id == command.operation_id


def _interrupted(cancellation: AttemptCancelledError, job_state: JobState | None) -> Outcome:
    timed_out = cancellation.reason == "timed_out"
    return Outcome(
        state=OperationState.TIMED_OUT if timed_out else OperationState.CANCELLED,
        job_state=job_state,
        error=cancellation.info(),
    )


def _should_run(command: HostCommand) -> bool:
    """Tell whether a container that does not run is a cause and not a consequence."""
    in_memory = talk_of(command.model).in_memory
    if in_memory is InMemory.NEVER:
        return False
    stops = command.verb in {Verb.DEPLOY_UNLOAD, Verb.DEPLOY_CREATE}
    return not (in_memory is InMemory.PROCESS_RUNS and stops)


def _ending(
    error: ModelyardError, job_state: JobState | None, facts: ContainerFacts | None = None
) -> Outcome:
    timed_out = error.code is ErrorCode.TIMED_OUT
    return Outcome(
        state=OperationState.TIMED_OUT if timed_out else OperationState.FAILED,
        job_state=job_state,
        container_id=facts.id if facts else None,
        error=error.info(),
    )
