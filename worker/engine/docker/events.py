"""Watches Docker's events, which hint that one of our containers has changed.

Source: Docker Engine API 1.41, SystemEvents. The engine drops events that are not read in time, and
its stream may end without an error. So an event is only a hint to list the containers again.
"""

import asyncio
import json
from collections.abc import Callable

import aiodocker

from worker.engine.docker.calls import deadline, streamed
from worker.engine.labels import HOST

WATCH_SLICE_S = 120.0
"""Seconds after which the stream is opened again, because a broken one may show no error."""
_OPEN_S = 30.0
_EVENTS = ("die", "oom", "stop", "destroy")


async def watch(docker: aiodocker.Docker, host_id: str, on_change: Callable[[], None]) -> None:
    """Call `on_change` once the stream is open, and after each event of this host's containers.

    Returns when the stream ends, and after `WATCH_SLICE_S`. Raises `EngineUnavailableError`.
    """
    filters = {"type": ["container"], "event": list(_EVENTS), "label": [f"{HOST}={host_id}"]}
    async with deadline("watch", _OPEN_S + WATCH_SLICE_S, internal=True):
        try:
            async with (
                asyncio.timeout(_OPEN_S) as limit,
                streamed(docker, "events", params={"filters": json.dumps(filters)}) as response,
            ):
                limit.reschedule(asyncio.get_running_loop().time() + WATCH_SLICE_S)
                on_change()
                async for _ in response.content.iter_any():
                    on_change()
        except TimeoutError:
            return
