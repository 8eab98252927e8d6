"""Awaiting several things at once, failing as one of them did."""

import asyncio
import contextlib
import sys
from collections.abc import Coroutine, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import structlog

from modelyard.contract.errors import ModelyardError

log = structlog.get_logger(__name__)

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")


class TaskGroup(asyncio.TaskGroup):  # noqa: TID251 - the one that mends it
    """A group that leaves its task cancelled only if somebody else has cancelled it.

    Before Python 3.13 a group whose task fails cancels its parent, to stop its body, and does not
    take that back: `cancelling()` counts it for ever. And a cancellation from outside gets lost
    when a task of the group fails too; here it goes first, and the errors are its cause. Those
    that are bugs are logged: nobody looks at the cause of a cancellation.
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
        already_asked = self._asked_for_it
        try:
            await super().__aexit__(kind, error, trace)
        except BaseException as failed:
            if sys.version_info < (3, 13) and self._asked_for_it and not already_asked:
                _task().uncancel()
            if isinstance(failed, Exception) and _cancelling() > self._cancelled_before:
                if any(not isinstance(one, ModelyardError) for one in _leaves(failed)):
                    log.exception("failure.while_cancelled")
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)  # 3.13 leaves it for the next await: for our caller's
                raise asyncio.CancelledError from failed
            raise

    @property
    def _asked_for_it(self) -> bool:
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
    """Await what runs until it is cancelled, as a task of a group.

    A cancellation that nobody asked for, such as a library's own, would be taken for its end and
    the group would go on without it; it comes out as `RuntimeError`, which ends the group.
    """
    try:
        await work
    except asyncio.CancelledError as error:
        if _cancelling():
            raise
        raise RuntimeError("a task was cancelled by nobody") from error


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
async def together(*all_of_them: Coroutine[Any, Any, A]) -> tuple[A, ...]: ...
async def together(*all_of_them: Coroutine[Any, Any, Any]) -> tuple[Any, ...]:
    """Run all at once and return their results in order.

    When one raises, the others are cancelled and awaited, and its own exception comes out, not a
    group: callers that handle `StoreUnavailableError` need not know how many calls were made.
    When several raise, one that is not a `ModelyardError` goes first, for it is a bug and must not
    pass for a store that is away; its cause is the group of all.
    """
    try:
        async with TaskGroup() as group:
            tasks = [group.create_task(one) for one in all_of_them]
    except BaseExceptionGroup as failed:
        every = list(_leaves(failed))
        bugs = [one for one in every if not isinstance(one, ModelyardError)]
        raise (bugs or every)[0] from failed
    return tuple(task.result() for task in tasks)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield error
