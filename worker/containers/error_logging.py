"""Logs errors of follow-up work, such as cleaning up, that must not change an outcome."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from modelyard.contract.errors import ModelyardError

log = structlog.get_logger(__name__)


@asynccontextmanager
async def log_errors(
    event: str, seconds: float, *, quiet: bool = False, **ids: str | int
) -> AsyncIterator[None]:
    """Limit the code inside to `seconds`; log an error in it as `event` and continue after it.

    For work that follows on an attempt and must not change its outcome. `quiet` logs nothing: for
    a retry whose first failure was logged. A cancellation passes through.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except (ModelyardError, TimeoutError) as error:
        if not quiet:
            log.warning(event, error=repr(error), **ids)
    except Exception:  # named boundary: follow-up work of one attempt
        if not quiet:
            log.exception(event, **ids)
