"""A deadline and a checked id on every call, and aiodocker's exceptions as ours."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiodocker
import aiohttp
from aiodocker.containers import DockerContainer
from aiodocker.exceptions import DockerError

from worker.runtime import EngineUnavailableError, NoSuchContainerError, checked_ref

CALL_S = 30.0
NOT_FOUND = 404
CONFLICT = 409
UNREACHABLE = 900
"""aiodocker's status for a refused connection."""
_SERVER_FAULT = 500


@asynccontextmanager
async def deadline(what: str, seconds: float) -> AsyncIterator[None]:
    """Bound the calls inside to `seconds`; aiodocker has no timeouts of its own.

    Raises `EngineUnavailableError` when there is no answer in time, or one of status 500 and
    above. A `DockerError` of any other status passes.
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
        if error.status < _SERVER_FAULT:
            raise
        raise EngineUnavailableError(f"Docker failed to {what}: {error.message}") from error
    except (aiohttp.ClientError, OSError) as error:
        raise EngineUnavailableError(f"Docker broke off (tried to {what}): {error!r}") from error


@asynccontextmanager
async def one_container(
    client: aiodocker.Docker, ref: str, what: str, seconds: float
) -> AsyncIterator[DockerContainer]:
    """Yield the handle of a container for one bounded call.

    Raises `NoSuchContainerError` for 404 and `EngineUnavailableError` for all other refusals.
    """
    container = client.containers.container(checked_ref(ref))
    async with deadline(f"{what} a container", seconds):
        try:
            yield container
        except DockerError as error:
            if error.status == NOT_FOUND:
                raise NoSuchContainerError from error
            message = f"Docker refused to {what} a container: {error.message}"
            raise EngineUnavailableError(message) from error
