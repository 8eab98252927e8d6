"""Waits for a container: probes it until a deadline, and stops waiting as soon as it exits."""

import asyncio
from collections.abc import Collection, Coroutine
from typing import Any, TypeVar

from modelyard.contract.catalog.entries import Probe
from modelyard.contract.deaths import death_of
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.process.tasks import TaskGroup
from worker.containers.polling import GrowingPauses
from worker.engine.protocol import (
    Address,
    ContainerExit,
    ContainerFacts,
    ContainerRuntime,
    NoSuchContainerError,
    RuntimeFaultError,
    StartRefusedError,
)
from worker.model_server.client import ModelServer
from worker.model_server.probes import ProbeResult, ProbeVerdict, asked_of

T = TypeVar("T")

_SLOW_PROBE_S = 1.0
_ENGINE_RETRY_S = 1.0


class RepeatedProbe:
    """One probe of one container that can be repeated; it keeps the last result."""

    def __init__(self, server: ModelServer, facts: ContainerFacts, probe: Probe) -> None:
        """`facts` is a running container; raises `exited` or `oom_killed` if it does not run."""
        self._server = server
        self._address = address_of(facts)
        self._probe = probe
        port = facts.labels.port if facts.labels else None
        self._asked = asked_of(probe.path, port or self._address.port)
        self.last: ProbeResult | None = None

    async def ask(self) -> ProbeResult:
        """Send the probe once."""
        self.last = await self._server.probe(self._address, self._probe)
        return self.last

    async def until(
        self, wanted: Collection[ProbeVerdict], seconds: float, what: str
    ) -> ProbeResult:
        """Repeat the probe until it gives one of the `wanted` answers.

        Raises `not_ready` after `seconds`; `what` says in the error what the container should do.
        """
        pauses = GrowingPauses(seconds)
        limit = asyncio.timeout(seconds + _SLOW_PROBE_S)
        try:
            async with limit:
                while True:
                    result = await self.ask()
                    if result.answer in wanted:
                        return result
                    if not await pauses.pause():
                        break
        except TimeoutError:
            if not limit.expired():
                raise
        raise self.not_ready(seconds, what)

    def not_ready(self, seconds: float, what: str) -> ModelyardError:
        """Return the error for a container that did not do `what` within `seconds`."""
        message = f"The container did not {what} within {seconds:g} s."
        if self.last is None:
            message = f"{message} The probe was {self._asked}."
            return ModelyardError(ErrorCode.NOT_READY, message, asked=self._asked)
        return ModelyardError(
            ErrorCode.NOT_READY,
            f"{message} {self.last.sentences(self._asked)}",
            **self.last.detail(self._asked),
        )


async def while_running(
    runtime: ContainerRuntime,
    container_id: str,
    work: Coroutine[Any, Any, T],
    *,
    grace_s: float = 0.0,
) -> T:
    """Return the result of `work`; raise `exited` or `oom_killed` as soon as the container exits.

    The engine is asked to wait for the exit only after `grace_s` seconds. Shorter work does not
    need it, because a connection to a process that has died breaks by itself.
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


def exited(end: ContainerExit) -> ModelyardError:
    """Return the error that says how a container ended."""
    info = death_of(end.code, oom_killed=end.oom_killed)
    return ModelyardError(info.code, info.message, **info.detail)


async def exit_error_of(runtime: ContainerRuntime, container_id: str) -> ModelyardError:
    """Wait until the container exits or is gone; return the error that says how.

    Raises `RuntimeFaultError` if the engine can't tell.
    """
    try:
        return exited(await runtime.wait_exit(container_id))
    except NoSuchContainerError as error:
        return error


def address_of(facts: ContainerFacts) -> Address:
    """Return the address of the container's port.

    Raises `exited` or `oom_killed` if it does not run, and `StartRefusedError` without a port.
    """
    if not facts.running:
        raise exited(ContainerExit(facts.exit_code or 0, facts.oom_killed))
    if facts.address is None:
        raise StartRefusedError("The container runs without its port.")
    return facts.address


class _Fault:
    """An expected error as a value: an error raised in a task group cancels the other task."""

    def __init__(self, error: ModelyardError) -> None:
        self.error = error


async def _outcome(work: Coroutine[Any, Any, T]) -> T | _Fault:
    try:
        return await work
    except ModelyardError as error:
        return _Fault(error)


async def _end_of(runtime: ContainerRuntime, container_id: str) -> ModelyardError:
    """Wait until the container exits; return the error that says how.

    Ask again while the engine can't tell.
    """
    while True:
        try:
            return await exit_error_of(runtime, container_id)
        except RuntimeFaultError:
            await asyncio.sleep(_ENGINE_RETRY_S)
