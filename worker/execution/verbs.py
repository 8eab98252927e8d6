"""One method for each verb: it executes a command and returns the outcome."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace

import structlog

from modelyard.contract.catalog.entries import Profile
from modelyard.contract.content.transfers import StoredResult
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.messages import HostCommand
from modelyard.contract.states import JobState, OperationState, Phase, Verb
from modelyard.process.tasks import TaskGroup
from worker.attempts.attempt import Attempt, Outcome
from worker.attempts.cancellation import AttemptCancelledError
from worker.containers.error_logging import log_errors
from worker.containers.lifecycle import ContainerLifecycle, of_generation
from worker.execution.batch import Batch
from worker.execution.cleanup import Cleanup
from worker.execution.failures import FailureOutcomes
from worker.execution.models import Models, grace_s
from worker.model_server.profiles import InMemory, dialogue_of
from worker.model_server.results import KeptResult

log = structlog.get_logger(__name__)

GIVE_UP_S = 8.0
"""Seconds for stopping what must not outlive the lease."""
_NOT_CANCELLABLE = frozenset({Verb.DEPLOY_UNLOAD, Verb.TERMINATE})

VerbMethod = Callable[[HostCommand, Attempt], Awaitable[Outcome]]


class VerbRunner:
    """Executes commands independently of each other; the caller orders those of one job."""

    def __init__(
        self,
        containers: ContainerLifecycle,
        models: Models,
        batch: Batch,
        outcomes: FailureOutcomes,
        cleanup: Cleanup,
    ) -> None:
        self.containers = containers
        self._models = models
        self._batch = batch
        self._outcomes = outcomes
        self._cleanup = cleanup
        self._methods: Mapping[Verb, VerbMethod] = {
            Verb.DEPLOY_CREATE: self._create,
            Verb.DEPLOY_LOAD: self._load,
            Verb.INFER: self._infer,
            Verb.DEPLOY_UNLOAD: self._unload,
            Verb.TERMINATE: self._terminate,
            Verb.TEMP: self._temp,
        }

    async def perform(self, attempt: Attempt) -> Outcome:
        """Execute the attempt's command within its `timeout_s`; an error becomes the outcome.

        `Attempt.cancellation` ends every verb except UNLOAD and TERMINATE, which go on.

        A cancellation of the asyncio task passes through and leaves the container as it is: the
        worker stops, and the attempt has not failed.
        """
        command = attempt.command
        try:
            async with _cancellable(attempt):
                outcome = await self._attempt(command, attempt)
                if not isinstance(outcome, Outcome):
                    outcome = await self._outcomes.of(command, outcome)
        except AttemptCancelledError as cancellation:
            return await self._outcomes.of_cancellation(attempt, cancellation)
        if command.verb is Verb.TEMP and outcome.state is OperationState.SUCCEEDED:
            # Removed without a grace period: nothing more that the container writes is read.
            attempt.report(Phase.REMOVING)
            try:
                async with _cancellable(attempt):
                    await self._cleanup.remove(command)
            except AttemptCancelledError:
                self._cleanup.remove_later(command)  # the result is there, so the outcome stays
        return outcome

    async def withdraw(self, attempt: Attempt, cancellation: AttemptCancelledError) -> Outcome:
        """Return the outcome of an attempt that was cancelled before `perform`."""
        return await self._outcomes.of_withdrawal(attempt.command, cancellation)

    async def give_up(self, commands: Iterable[HostCommand]) -> None:
        """Stop what must not outlive the lease: TEMPs among `commands`, and `strict` containers.

        `clean_up` and the watchdog try again where this fails.
        """
        temps = [command for command in commands if command.verb is Verb.TEMP]
        for command in temps:
            self._cleanup.remove_later(command)
        async with log_errors("lease.not_cleaned", GIVE_UP_S), TaskGroup() as tasks:
            for command in temps:
                tasks.create_task(self._cleanup.remove(command))
            tasks.create_task(self.containers.halt_strict())

    async def clean_up(self) -> None:
        """Retry pending removals until cancelled; the caller runs this as a task."""
        await self._cleanup.run()

    async def _attempt(self, command: HostCommand, attempt: Attempt) -> Outcome | ModelyardError:
        limit = asyncio.timeout(command.timeout_s)
        try:
            async with limit:
                if command.verb not in dialogue_of(command.model).verbs:
                    return ModelyardError(
                        ErrorCode.UNSUPPORTED_VERB, profile=command.model.profile.value
                    )
                return await self._methods[command.verb](command, attempt)
        except ModelyardError as error:
            return error
        except Exception as error:  # named boundary: one attempt; the others go on
            if isinstance(error, TimeoutError) and limit.expired():
                return ModelyardError(ErrorCode.TIMED_OUT, timeout_s=command.timeout_s)
            log.exception(
                "operation.fault",
                operation_id=command.operation_id,
                job_id=command.job_id,
                epoch=command.epoch,
                verb=command.verb.value,
            )
            return ModelyardError(ErrorCode.WORKER_ERROR, fault=type(error).__name__)

    async def _create(self, command: HostCommand, attempt: Attempt) -> Outcome:
        await self._cleanup.claim(command)
        facts = await self.containers.ensure(command, attempt)
        if dialogue_of(command.model).in_memory is InMemory.SERVER_SAYS_SO:
            facts = await self.containers.serve(command, facts, attempt)
        return Outcome(OperationState.SUCCEEDED, JobState.CREATED, facts.id)

    async def _load(self, command: HostCommand, attempt: Attempt) -> Outcome:
        facts = await self.containers.require(command)
        facts = await self._models.load(command, facts, attempt)
        news = self.containers.meter.news(facts.id)
        return Outcome(OperationState.SUCCEEDED, JobState.LOADED, facts.id, footprint=news)

    async def _infer(self, command: HostCommand, attempt: Attempt) -> Outcome:
        facts = await self.containers.reach(command)
        result = await self._models.infer(command, facts, attempt)
        news = self.containers.meter.news(facts.id)
        return _with_result(
            Outcome(OperationState.SUCCEEDED, None, facts.id, footprint=news), result
        )

    async def _unload(self, command: HostCommand, attempt: Attempt) -> Outcome:
        facts = await self.containers.require(command)
        await self.containers.meter.measure(facts.id)
        news = self.containers.meter.news(facts.id)
        await self.containers.meter.leave(command, facts.id)
        try:
            await self._models.unload(command, facts, attempt)
        except ModelyardError as error:
            if error.code is ErrorCode.MEMORY_NOT_FREED:
                self.containers.meter.forget(facts.id)
            raise
        self.containers.meter.forget(facts.id)
        return Outcome(OperationState.SUCCEEDED, JobState.CREATED, facts.id, footprint=news)

    async def _terminate(self, command: HostCommand, attempt: Attempt) -> Outcome:
        attempt.report(Phase.REMOVING)
        removed = await self.containers.remove_generations(
            command.job_id, up_to=command.generation, grace_s=grace_s(command)
        )
        facts = of_generation(command.generation, removed)
        return Outcome(OperationState.SUCCEEDED, JobState.TERMINATED, facts.id if facts else None)

    async def _temp(self, command: HostCommand, attempt: Attempt) -> Outcome:
        # A container of an earlier attempt is not adopted: how far it came is unknown.
        await self._cleanup.claim(command)
        facts = await self.containers.create_anew(command, attempt)
        if command.model.profile is Profile.BATCH:
            result = await self._batch.run(command, facts, attempt)
        else:
            if dialogue_of(command.model).in_memory is InMemory.SERVER_SAYS_SO:
                facts = await self.containers.serve(command, facts, attempt)
            facts = await self._models.load(command, facts, attempt)
            result = await self._models.infer(command, facts, attempt)
            await self.containers.meter.measure(facts.id)
        outcome = Outcome(
            OperationState.SUCCEEDED,
            JobState.TERMINATED,
            facts.id,
            footprint=self.containers.meter.news(facts.id),
        )
        return _with_result(outcome, result)


def _with_result(outcome: Outcome, result: KeptResult) -> Outcome:
    if isinstance(result, str):
        return replace(outcome, result_json=result)
    if isinstance(result, StoredResult):
        return replace(outcome, result_stored=result)
    return replace(outcome, result_content=result)


def _cancellable(attempt: Attempt) -> AbstractAsyncContextManager[None]:
    return (
        nullcontext() if attempt.command.verb in _NOT_CANCELLABLE else attempt.cancellation.scope()
    )
