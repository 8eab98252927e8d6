"""Task groups, which fail with the error of one of their tasks; threads for what may hang."""

import asyncio
import concurrent.futures
import contextlib
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, overload

import structlog

from modelyard.contract.errors import ModelyardError

log = structlog.get_logger(__name__)

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
P = ParamSpec("P")


class TaskGroup(asyncio.TaskGroup):  # noqa: TID251 - this class corrects it
    """A task group that corrects two faults of `asyncio.TaskGroup` with cancellation.

    Before Python 3.13 a group whose task fails cancels its parent task, to stop the group's body,
    and never takes that back: `cancelling()` counts it for ever. And a cancellation from outside
    gets lost if a task of the group fails too. Here the cancellation is raised, with the errors as
    its cause. Errors that are bugs are logged, because nobody reads the cause of a cancellation.
    """

    async def __aenter__(self) -> Self:
        self._cancelled_before = _cancelling()
        await super().__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        cancelled_parent_before = self._cancelled_parent
        try:
            await super().__aexit__(kind, error, trace)
        except BaseException as failed:
            if (
                sys.version_info < (3, 13)
                and self._cancelled_parent
                and not cancelled_parent_before
            ):
                _task().uncancel()
            if isinstance(failed, Exception) and _cancelling() > self._cancelled_before:
                if any(not isinstance(one, ModelyardError) for one in _leaves(failed)):
                    log.exception("failure.while_cancelled")
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)  # 3.13 delivers it at the next await; this one takes it
                raise asyncio.CancelledError from failed
            raise

    @property
    def _cancelled_parent(self) -> bool:
        """True once the group has cancelled its parent itself."""
        return bool(self._parent_cancel_requested)  # type: ignore[attr-defined]


def _task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a group of tasks needs a task around it")
    return task


def _cancelling() -> int:
    return _task().cancelling()


async def unending(work: Coroutine[Any, Any, None]) -> None:
    """Await a coroutine that runs until it is cancelled, as a task of a group.

    If a library raises `CancelledError` although nobody cancelled the task, a group would take that
    for the orderly end of the task and go on without it. So it becomes a `RuntimeError`, which ends
    the group.
    """
    try:
        await work
    except asyncio.CancelledError as error:
        if _cancelling():
            raise
        raise RuntimeError("CancelledError in a task that nobody cancelled") from error


@overload
async def together(
    first: Coroutine[Any, Any, A], second: Coroutine[Any, Any, B], /
) -> tuple[A, B]: ...
@overload
async def together(
    first: Coroutine[Any, Any, A],
    second: Coroutine[Any, Any, B],
    third: Coroutine[Any, Any, C],
    /,
) -> tuple[A, B, C]: ...
@overload
async def together(*coroutines: Coroutine[Any, Any, A]) -> tuple[A, ...]: ...
async def together(*coroutines: Coroutine[Any, Any, Any]) -> tuple[Any, ...]:
    """Run all coroutines at once and return their results in order.

    If one raises, the others are cancelled and awaited, and its exception is raised, not a group:
    callers that handle `StoreUnavailableError` need not know how many calls were made. If several
    raise, one that is not a `ModelyardError` is preferred, because it is a bug and must not look
    like an unavailable store; its cause is the group of all.
    """
    try:
        async with TaskGroup() as group:
            tasks = [group.create_task(one) for one in coroutines]
    except BaseExceptionGroup as failed:
        leaves = list(_leaves(failed))
        bugs = [one for one in leaves if not isinstance(one, ModelyardError)]
        raise (bugs or leaves)[0] from failed
    return tuple(task.result() for task in tasks)


class _DaemonThreads(concurrent.futures.Executor):
    """Runs each call in a thread of its own; nobody joins it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def submit(
        self, fn: Callable[P, A], /, *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[A]:
        done: concurrent.futures.Future[A] = concurrent.futures.Future()
        # Who stops waiting can't cancel it any more: its result is dropped without an error.
        done.set_running_or_notify_cancel()

        def run() -> None:
            try:
                done.set_result(fn(*args, **kwargs))
            except Exception as fault:  # noqa: BLE001 - raised again where the future is awaited
                done.set_exception(fault)

        threading.Thread(target=run, name=self._name, daemon=True).start()
        return done


def in_daemon_thread(work: Callable[[], A], *, name: str) -> asyncio.Future[A]:
    """Run `work` in a thread of its own, for which the process does not wait when it exits.

    The event loop's own threads are few and are joined at exit, so stuck calls would block other
    work and the exit. Whoever stops waiting leaves `work` running.
    """
    return asyncio.get_running_loop().run_in_executor(_DaemonThreads(name), work)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield error
