"""Waiting for something in another process that sends no event."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LOOK_S = 0.2


async def until(true: Callable[[], Awaitable[bool]], *, within_s: float) -> None:
    """Return once `true` returns true; raises `TimeoutError` after `within_s` seconds."""
    async with asyncio.timeout(within_s):
        while True:
            if await true():
                return
            await asyncio.sleep(LOOK_S)
