"""Awaiting several things at once, failing as one of them did."""

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar, overload

from modelyard.contract.errors import ModelyardError

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
    When several raise, one that is not a `ModelyardError` goes first, for it is a bug and must not
    pass for a store that is away; its cause is the group of all.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in all_of_them]
    except BaseExceptionGroup as failed:
        every = list(_leaves(failed))
        bugs = [one for one in every if not isinstance(one, ModelyardError)]
        raise (bugs or every)[0] from failed
    return tuple(task.result() for task in tasks)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for one in group.exceptions:
        if isinstance(one, BaseExceptionGroup):
            yield from _leaves(one)
        else:
            yield one
