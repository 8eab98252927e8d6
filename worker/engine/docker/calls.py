"""A deadline and a checked id on every call, and aiodocker's exceptions as ours."""

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
"""From here on up it is the engine's trouble and not the request's."""
UNREACHABLE = 900
"""aiodocker's status for a refused connection."""


_DISK_FULL = "no space left on device"
"""ENOSPC in the words of Go, which the engine passes on."""


def disk_is_full(message: str | None) -> bool:
    """Tell whether the engine's words mean that its disk is full."""
    return _DISK_FULL in (message or "").lower()


def refuses_storage_opt(message: str | None) -> bool:
    """Tell whether the engine says that its storage can't bound what a container writes."""
    said = (message or "").lower()
    return any(word in said for word in ("storage-opt", "pquota"))


def is_refusal(error: DockerError) -> bool:
    """Tell whether the engine found fault with the request, and not with itself."""
    return error.status < SERVER_FAULT and error.status != TOO_MANY


def client_of(url: str) -> aiodocker.Docker:
    """Return a client that takes as many connections as there are calls.

    aiohttp's 100 would be shared by all waits: the call that ends them could wait behind them.
    """
    client = aiodocker.Docker(url=url)
    client.connector._limit = 0  # noqa: SLF001 - aiodocker takes no limit, and TLS is its to set up
    return client


@asynccontextmanager
async def deadline(what: str, seconds: float, *, ours: bool = False) -> AsyncIterator[None]:
    """Bound the calls inside to `seconds`; aiodocker has no timeouts of its own.

    Raises `EngineUnavailableError` when there is no answer in time, one that can't be read, or the
    engine's own failure. A refusal (4xx) that nobody inside has given another name is an
    `EngineRefusedError`: what was asked for is at fault. `ours` is for calls that carry nothing of
    a request: an engine that refuses these is of no use, as one that is away.
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
        if disk_is_full(error.message):
            raise DiskFullError(f"Docker failed to {what}: {error.message}") from error
        if is_refusal(error) and not ours:
            raise EngineRefusedError(f"Docker refused to {what}: {error.message}") from error
        raise EngineUnavailableError(f"Docker failed to {what}: {error.message}") from error
    except (aiohttp.ClientError, OSError) as error:
        raise EngineUnavailableError(f"Docker broke off (tried to {what}): {error!r}") from error
    except (ValueError, KeyError, TypeError) as error:
        # aiodocker and our documents alike meet an answer that is cut off or of another form.
        message = f"Docker's answer can't be read (tried to {what}): {type(error).__name__}."
        raise EngineUnavailableError(message) from error


@asynccontextmanager
async def one_container(
    client: aiodocker.Docker, ref: str, what: str, seconds: float, *, ours: bool = False
) -> AsyncIterator[DockerContainer]:
    """Yield the handle of a container for one bounded call.

    Raises `NoSuchContainerError` for 404, and for all else what `deadline` does.
    """
    container = client.containers.container(checked_ref(ref))
    async with deadline(f"{what} a container", seconds, ours=ours):
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
    """Yield an answer that is read bit by bit, and close its connection whatever happens.

    aiodocker's own streams leave it open when their reader is cancelled: the engine would go on
    pulling for nobody.
    """
    query = client._query(path, method, params=dict(params), timeout=None)  # noqa: SLF001
    async with query as response:
        try:
            yield response
        finally:
            response.close()
