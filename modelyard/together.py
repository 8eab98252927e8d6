"""Awaiting several things at once, failing as one of them did."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar, overload

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")


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
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in all_of_them]
    except BaseExceptionGroup as failed:
        raise _first(failed) from failed
    return tuple(task.result() for task in tasks)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
