"""Turns the error of an attempt into its outcome: find the cause, keep the log's end, clean up."""

import asyncio

from modelyard.contract.deaths import over_memory
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.messages import HostCommand
from modelyard.contract.retries import is_retried
from modelyard.contract.states import JobState, OperationState, Verb
from worker.attempts.attempt import Attempt, Outcome
from worker.attempts.cancellation import AttemptCancelledError
from worker.containers.error_logging import log_errors
from worker.containers.lifecycle import ContainerLifecycle
from worker.containers.readiness import exited
from worker.engine.protocol import ContainerExit, ContainerFacts, ContainerRuntime
from worker.execution.cleanup import Cleanup
from worker.execution.deaths import LOG_S, log_tail
from worker.model_server.client import NoAnswerError
from worker.model_server.profiles import InMemory, dialogue_of

INSPECT_S = 40.0
"""Seconds to inspect the container, or to stop it."""
EXIT_NOTICE_S = 2.0
"""Seconds for the engine to notice that a process whose connections broke has died."""

_REMOVED_ON_FAILURE = frozenset({Verb.DEPLOY_CREATE, Verb.DEPLOY_LOAD, Verb.TEMP})
"""Verbs whose failure removes the container: one that is half ready is of no use."""
_CREATING = frozenset({Verb.DEPLOY_CREATE, Verb.TEMP})
"""Verbs that create a container."""
_WITHOUT_EFFECT = frozenset({ErrorCode.UNSUPPORTED_VERB})
"""Errors of attempts that were refused before they did anything."""
_EXIT_ERRORS = frozenset(
    {
        ErrorCode.EXITED,
        ErrorCode.OOM_KILLED,
        ErrorCode.DISK_QUOTA_EXCEEDED,
        ErrorCode.CONTAINER_MISSING,
    }
)
"""Errors that mean that the container is gone or has exited."""
_MAYBE_EXIT_ERRORS = frozenset(
    {
        ErrorCode.NOT_READY,
        ErrorCode.LOAD_FAILED,
        ErrorCode.UNLOAD_FAILED,
        ErrorCode.INFERENCE_FAILED,
    }
)
"""Errors that may be only a symptom: the container of the model server may have died."""


class FailureOutcomes:
    """Determines the outcome of failed and of cancelled attempts, and cleans up after them."""

    def __init__(
        self, runtime: ContainerRuntime, containers: ContainerLifecycle, cleanup: Cleanup
    ) -> None:
        self._runtime = runtime
        self._containers = containers
        self._cleanup = cleanup

    async def of(self, command: HostCommand, error: ModelyardError) -> Outcome:
        """Return the outcome of a failed attempt, after removing what the verb must not leave.

        An error on the way is logged; at most a detail is missing in the outcome then.
        """
        if command.verb is Verb.TERMINATE or error.code in _WITHOUT_EFFECT:
            return _outcome(error, None)
        if error.code is ErrorCode.MEMORY_NOT_FREED:
            return _outcome(error, JobState.CREATED)  # its container is there, and stopped
        if command.verb is Verb.DEPLOY_LOAD and is_retried(command.verb, error.code):
            # The container did not cause the error, and the next attempt needs the container.
            return _outcome(error, None)
        facts: ContainerFacts | None = None
        async with log_errors("container.unseen", INSPECT_S, operation_id=command.operation_id):
            facts = await self._containers.find(command)
            error = self._stop_cause(await self._cause(command, error, facts), facts)
        if error.code is ErrorCode.OOM_KILLED:
            error = ModelyardError(
                error.code, over_memory(command.model.resources.memory), **error.detail
            )
        if command.verb not in _REMOVED_ON_FAILURE and error.code not in _EXIT_ERRORS:
            return _outcome(error, None, facts)
        if facts is not None and facts.ever_started:
            if facts.exit_code is not None:
                error.detail.setdefault("exit_code", facts.exit_code)
            async with log_errors("container.no_log", LOG_S, operation_id=command.operation_id):
                await self._add_log(error, facts)
        await self._cleanup.remove(command)
        return _outcome(error, JobState.FAILED, facts)

    async def of_cancellation(
        self, attempt: Attempt, cancellation: AttemptCancelledError
    ) -> Outcome:
        """End an attempt that was cancelled while it ran; the caller holds the job's lock.

        Returns its outcome once the cleaning is done: when that is reported, what the attempt held
        of the host is given to others.
        """
        job_state = _job_state_after(attempt.command, cancellation)
        if job_state is not None:
            job_state = await self._clean(attempt, cancellation, job_state)
        return _cancelled_outcome(cancellation, job_state)

    async def of_withdrawal(
        self, command: HostCommand, cancellation: AttemptCancelledError
    ) -> Outcome:
        """End an attempt that was cancelled before it began; the job's lock is not held for it."""
        job_state = _job_state_after(command, cancellation)
        if command.verb not in _CREATING or job_state is None:
            return _cancelled_outcome(cancellation, None)
        inspected = False
        facts: ContainerFacts | None = None
        async with log_errors("container.unseen", INSPECT_S, operation_id=command.operation_id):
            facts = await self._containers.find(command)
            inspected = True
        if not inspected or _made_by(command, facts):
            await self._cleanup.remove(command)
            # The engine may have a request to create the container that it has not executed yet.
            self._cleanup.remove_later(command)
        elif facts is not None:
            return _cancelled_outcome(cancellation, None)  # another operation created the container
        return _cancelled_outcome(cancellation, job_state)

    async def _clean(
        self, attempt: Attempt, cancellation: AttemptCancelledError, job_state: JobState
    ) -> JobState | None:
        """Clean up after a cancellation; return the job's state then, None if it is unchanged."""
        command = attempt.command
        if job_state is JobState.CREATED:
            return await self._stop_half_loaded(attempt)
        if command.verb is Verb.DEPLOY_CREATE and cancellation.reason != "timed_out":
            facts: ContainerFacts | None = None
            async with log_errors("container.unseen", INSPECT_S, operation_id=command.operation_id):
                facts = await self._containers.find(command)
            if facts is not None and not _made_by(command, facts):
                return None  # the container existed before this CREATE
        await self._cleanup.remove(command)
        if command.verb in _CREATING:
            # The engine may have a request to create the container that it has not executed yet.
            self._cleanup.remove_later(command)
        return job_state

    async def _stop_half_loaded(self, attempt: Attempt) -> JobState | None:
        """Stop the container of a model that was being loaded, so nothing of it stays in memory.

        Returns None, which says nothing, if it could not be stopped, or if loading had not begun.
        """
        command = attempt.command
        if attempt.phase is None:
            return None
        async with log_errors(
            "container.not_stopped", INSPECT_S, operation_id=command.operation_id
        ):
            facts = await self._containers.find(command)
            if facts is None:
                return None
            await self._containers.halt(facts)
            return JobState.CREATED
        return None

    async def _cause(
        self, command: HostCommand, error: ModelyardError, facts: ContainerFacts | None
    ) -> ModelyardError:
        """Return the error for the container's exit if that caused `error`, else `error`."""
        if error.code in _EXIT_ERRORS or error.code is ErrorCode.ENGINE_UNAVAILABLE:
            return error
        if facts is None:
            gone = command.verb not in _REMOVED_ON_FAILURE
            return ModelyardError(ErrorCode.CONTAINER_MISSING) if gone else error
        if error.code not in _MAYBE_EXIT_ERRORS:
            return error
        if isinstance(error, NoAnswerError):
            facts = await self._inspect_after_exit(facts)
        if facts.ever_started and not facts.running and _should_run(command):
            return exited(ContainerExit(facts.exit_code or 0, facts.oom_killed))
        return error

    def _stop_cause(self, error: ModelyardError, facts: ContainerFacts | None) -> ModelyardError:
        """Return why the worker stopped the container by itself if it did, else `error`."""
        cause = None if facts is None else self._containers.health.stop_causes.get(facts.id)
        if cause is None or error.code not in _EXIT_ERRORS:
            return error
        return ModelyardError(cause.code, cause.message, **cause.detail)

    async def _inspect_after_exit(self, facts: ContainerFacts) -> ContainerFacts:
        try:
            async with asyncio.timeout(EXIT_NOTICE_S):
                await self._runtime.wait_exit(facts.id)
        except TimeoutError:
            pass
        return await self._runtime.inspect(facts.id)

    async def _add_log(self, error: ModelyardError, facts: ContainerFacts) -> None:
        error.detail.setdefault("log_tail", await log_tail(self._runtime, facts.id))


def _job_state_after(command: HostCommand, cancellation: AttemptCancelledError) -> JobState | None:
    """Return the state of a job after its attempt was cancelled; None if it is unchanged."""
    if command.verb not in _REMOVED_ON_FAILURE:
        return None
    if cancellation.reason == "timed_out":
        return JobState.FAILED
    return JobState.CREATED if command.verb is Verb.DEPLOY_LOAD else JobState.TERMINATED


def _made_by(command: HostCommand, facts: ContainerFacts | None) -> bool:
    labels = facts.labels if facts else None
    return labels is not None and labels.operation_id == command.operation_id


def _cancelled_outcome(cancellation: AttemptCancelledError, job_state: JobState | None) -> Outcome:
    timed_out = cancellation.reason == "timed_out"
    return Outcome(
        state=OperationState.TIMED_OUT if timed_out else OperationState.CANCELLED,
        job_state=job_state,
        error=cancellation.info(),
    )


def _should_run(command: HostCommand) -> bool:
    """Return whether the container was meant to run, so that its end explains the error."""
    in_memory = dialogue_of(command.model).in_memory
    if in_memory is InMemory.NEVER:
        return False
    stops = command.verb in {Verb.DEPLOY_UNLOAD, Verb.DEPLOY_CREATE}
    return not (in_memory is InMemory.PROCESS_RUNS and stops)


def _outcome(
    error: ModelyardError, job_state: JobState | None, facts: ContainerFacts | None = None
) -> Outcome:
    timed_out = error.code is ErrorCode.TIMED_OUT
    return Outcome(
        state=OperationState.TIMED_OUT if timed_out else OperationState.FAILED,
        job_state=job_state,
        container_id=facts.id if facts else None,
        error=error.info(),
    )
