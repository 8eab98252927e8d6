"""Runs attempts: one task for each, owned by the task group of the incarnation."""

import asyncio
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TYPE_CHECKING

import structlog

from modelyard.contract.messages import HostCommand
from modelyard.contract.states import VERB_RULES
from modelyard.process.tasks import TaskGroup
from worker.attempts.attempt import Attempt
from worker.attempts.cancellation import AttemptCancelledError
from worker.attempts.job_locks import JobLocks
from worker.attempts.registry import AttemptRegistry
from worker.execution.verbs import VerbRunner

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger(__name__)


class AttemptRunner:
    """Starts attempts, replaces superseded ones, and waits for them or cancels them at the end."""

    def __init__(
        self, operations: VerbRunner, registry: AttemptRegistry, locks: JobLocks, tasks: TaskGroup
    ) -> None:
        self.on_ended: Callable[[str, str, str | None], None] = lambda _verb, _state, _code: None
        """Called with the verb, the state and the error's code of each attempt that has ended."""
        self._operations = operations
        self._registry = registry
        self._tasks = tasks
        self._locks = locks
        self._running: dict[Attempt, asyncio.Task[None]] = {}
        self._abandoned = False

    def start(self, attempt: Attempt, superseded: Attempt | None = None) -> None:
        """Start an attempt unless it runs; cancel the one it supersedes."""
        if attempt in self._running or self._abandoned:
            return
        earlier = self._running.get(superseded) if superseded is not None else None
        if earlier is not None:
            earlier.cancel()
        attempt.begin()
        task = self._tasks.create_task(self._run(attempt, earlier))
        self._running[attempt] = task
        task.add_done_callback(lambda _: self._running.pop(attempt, None))

    async def drain(self, seconds: float) -> None:
        """Wait up to `seconds` for running attempts; cancel the rest, leaving their containers."""
        if self._running:
            await asyncio.wait(tuple(self._running.values()), timeout=seconds)
        for attempt, task in tuple(self._running.items()):
            log.info("operation.left", operation_id=attempt.command.operation_id)
            task.cancel()

    async def abandon(self) -> list[HostCommand]:
        """Cancel all attempts without another report; return their commands.

        Containers stay as they are. No attempt can be started afterwards.
        """
        self._abandoned = True
        running = dict(self._running)
        for attempt, task in running.items():
            attempt.stop_reporting()
            task.cancel()
        if running:
            await asyncio.wait(tuple(running.values()))
        return [attempt.command for attempt in running]

    async def _run(self, attempt: Attempt, earlier: asyncio.Task[None] | None) -> None:
        command = attempt.command
        async with AsyncExitStack() as lock:
            try:
                async with attempt.cancellation.scope():
                    if earlier is not None:
                        await asyncio.wait((earlier,))
                    await lock.enter_async_context(self._job_lock(command))
            except AttemptCancelledError as cancellation:
                outcome = await self._operations.withdraw(attempt, cancellation)
            else:
                outcome = await self._operations.perform(attempt)
            attempt.end(outcome)
            # Close before the lock is released, so the next attempt on this job sees this one as
            # ended.
            self._registry.close(attempt)
        code = outcome.error.code.value if outcome.error else None
        self.on_ended(command.verb.value, outcome.state.value, code)
        log.info(
            "operation.ended",
            operation_id=command.operation_id,
            job_id=command.job_id,
            epoch=command.epoch,
            verb=command.verb.value,
            state=outcome.state.value,
            code=code,
        )

    def _job_lock(self, command: HostCommand) -> AbstractAsyncContextManager[None]:
        shared_by = command.model.max_concurrency if VERB_RULES[command.verb].shared else None
        return self._locks.hold(command.job_id, shared_by=shared_by)
