"""Waiting for a container: probed until a deadline, given up at once when it exits."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from modelyard.contract.deaths import death_of
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.together import TaskGroup
from worker.pauses import GrowingPauses
from worker.runtime import ContainerRuntime, EngineUnavailableError, Exit

T = TypeVar("T")

_SLOW_PROBE_S = 1.0
_ENGINE_RETRY_S = 1.0


async def until(holds: Callable[[], Awaitable[bool]], seconds: float, what: str) -> None:
    """Return once `holds()` does; raises `not_ready` after `seconds`, naming `what`."""
    pauses = GrowingPauses(seconds)
    limit = asyncio.timeout(seconds + _SLOW_PROBE_S)
    try:
        async with limit:
            while True:
                if await holds():
                    return
                if not await pauses.again():
                    break
    except TimeoutError:
        if not limit.expired():
            raise
    raise not_ready(what, seconds)


def not_ready(what: str, seconds: float) -> ModelyardError:
    """Return the error for a container that did not do `what` in time."""
    return ModelyardError(
        ErrorCode.NOT_READY, f"The container did not {what} within {seconds:g} s."
    )


async def while_running(
    runtime: ContainerRuntime,
    container_id: str,
    work: Coroutine[Any, Any, T],
    *,
    grace_s: float = 0.0,
) -> T:
    """Return what `work` does, or raise `exited` or `oom_killed` as soon as the container ends.

    The engine is asked to watch only `grace_s` seconds later: short work needs no watching,
    because a connection to a process that has died breaks by itself.
    """
    async with TaskGroup() as tasks:
        working = tasks.create_task(_outcome(work))
        await asyncio.wait((working,), timeout=grace_s)
        watching = tasks.create_task(_end_of(runtime, container_id))
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        working.cancel()
        watching.cancel()
    if working.cancelled():
        raise watching.result()
    result = working.result()
    if isinstance(result, _Fault):
        raise result.error
    return result


def exited(end: Exit) -> ModelyardError:
    """Return the error that says how a container ended."""
    info = death_of(end.code, oom_killed=end.oom_killed)
    return ModelyardError(info.code, info.message, **info.detail)


class _Fault:
    """An expected error as a value: raised in a task group it would cancel the other task."""

    def __init__(self, error: ModelyardError) -> None:
        self.error = error


async def _outcome(work: Coroutine[Any, Any, T]) -> T | _Fault:
    try:
        return await work
    except ModelyardError as error:
        return _Fault(error)


async def _end_of(runtime: ContainerRuntime, container_id: str) -> ModelyardError:
    """Return why the container does not run any more; an engine that is away says nothing."""
    while True:
        try:
            return exited(await runtime.wait_exit(container_id))
        except EngineUnavailableError:
            await asyncio.sleep(_ENGINE_RETRY_S)
        except ModelyardError as error:
            return error
