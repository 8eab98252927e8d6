"""Wraps calls of aiodocker: a deadline, a checked id, and our errors in place of its exceptions."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiodocker
import aiohttp
from aiodocker.containers import DockerContainer
from aiodocker.exceptions import DockerError

from worker.engine.protocol import (
    DiskFullError,
    EngineRefusedError,
    EngineUnavailableError,
    NoSuchContainerError,
    checked_ref,
)

CALL_S = 30.0
NOT_FOUND = 404
CONFLICT = 409
TOO_MANY = 429
SERVER_FAULT = 500
"""From this status on the engine has failed; below it the request was refused."""
UNREACHABLE = 900
"""aiodocker's status for a refused connection."""


_DISK_FULL = "no space left on device"
"""Go's text for ENOSPC, which the engine passes on."""
_NETWORK_FAILED = "programming external connectivity"
"""The engine's text; its status is 500, as for much that is the user's fault."""


def disk_is_full(message: str | None) -> bool:
    """Return whether the engine's message means that its disk is full."""
    return _DISK_FULL in (message or "").lower()


def network_failed(message: str | None) -> bool:
    """Return whether the engine could not publish a container's port or write its packet filter.

    The container's program has not run. A port that somebody else takes meanwhile and a packet
    filter that is being written anew are gone at the next attempt, or on another host.
    """
    return _NETWORK_FAILED in (message or "").lower()


def refuses_storage_opt(message: str | None) -> bool:
    """Return whether the message means that the storage driver can't limit a container's writes."""
    text = (message or "").lower()
    return any(mark in text for mark in ("storage-opt", "pquota"))


def is_refusal(error: DockerError) -> bool:
    """Return whether the engine refused the request, in contrast to a failure of its own."""
    return error.status < SERVER_FAULT and error.status != TOO_MANY


def client_of(url: str) -> aiodocker.Docker:
    """Return a client without a limit on its connections.

    aiohttp's default is 100. Waits for containers could take all of them, and the call that stops a
    container, and so ends a wait, would have to wait behind them.
    """
    client = aiodocker.Docker(url=url)
    client.connector._limit = 0  # noqa: SLF001 - aiodocker takes no limit, and TLS is its to set up
    return client


@asynccontextmanager
async def deadline(what: str, seconds: float, *, internal: bool = False) -> AsyncIterator[None]:
    """Limit the calls inside to `seconds`, because aiodocker has no timeouts of its own.

    Raises `EngineUnavailableError` if the engine does not answer in time, fails, or sends an answer
    that can't be parsed; what is made of the answer belongs inside, too. A refusal (4xx) that the
    code inside does not handle becomes an `EngineRefusedError`: the request is at fault. A full
    disk becomes a `DiskFullError`. Set `internal` for calls without any argument from a request:
    an engine that can't do even these is as useless as one that is away, so nothing but
    `EngineUnavailableError` is raised.
    """
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        message = f"Docker did not answer within {seconds:g} s (tried to {what})."
        raise EngineUnavailableError(message) from error
    except DockerError as error:
        if disk_is_full(error.message) and not internal:
            raise DiskFullError(f"Docker failed to {what}: {error.message}") from error
        if is_refusal(error) and not internal:
            raise EngineRefusedError(f"Docker refused to {what}: {error.message}") from error
        raise EngineUnavailableError(f"Docker failed to {what}: {error.message}") from error
    except (aiohttp.ClientError, OSError) as error:
        raise EngineUnavailableError(f"Docker broke off (tried to {what}): {error!r}") from error
    except (ValueError, KeyError, TypeError) as error:
        # The answer was cut off or has another form; aiodocker or our documents can't parse it.
        message = f"Docker's answer can't be read (tried to {what}): {type(error).__name__}."
        raise EngineUnavailableError(message) from error


@asynccontextmanager
async def one_container(
    client: aiodocker.Docker, ref: str, what: str, seconds: float, *, internal: bool = False
) -> AsyncIterator[DockerContainer]:
    """Yield the handle of a container for one bounded call.

    Raises `NoSuchContainerError` for 404, and for other failures what `deadline` raises.
    """
    container = client.containers.container(checked_ref(ref))
    async with deadline(f"{what} a container", seconds, internal=internal):
        try:
            yield container
        except DockerError as error:
            if error.status == NOT_FOUND:
                raise NoSuchContainerError from error
            raise


@asynccontextmanager
async def streamed(
    client: aiodocker.Docker, path: str, *, params: Mapping[str, str | int], method: str = "GET"
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Yield a streamed answer, and always close its connection at the end.

    aiodocker's own streams keep the connection open when their reader is cancelled, and the engine
    would go on with a pull that nobody waits for.
    """
    query = client._query(path, method, params=dict(params), timeout=None)  # noqa: SLF001
    async with query as response:
        try:
            yield response
        finally:
            response.close()
