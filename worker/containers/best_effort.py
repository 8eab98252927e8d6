"""Best effort: work that follows an attempt and must not change how the attempt ended."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from modelyard.contract.errors import ModelyardError

log = structlog.get_logger(__name__)


@asynccontextmanager
async def best_effort(
    event: str, seconds: float, *, quiet: bool = False, **ids: str | int
) -> AsyncIterator[None]:
    """Bound what is inside to `seconds`; log what goes wrong in it, and go on after it.

    For what follows on an attempt and may not change its end. `quiet` is for repetitions of what
    was logged before. Cancellation passes.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except (ModelyardError, TimeoutError) as trouble:
        if not quiet:
            log.warning(event, error=repr(trouble), **ids)
    except Exception:  # named boundary: what follows on one attempt
        if not quiet:
            log.exception(event, **ids)
