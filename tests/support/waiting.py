"""Waiting for a fact to be true, with a deadline; the only loop that polls in the tests."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def eventually(
    probe: Callable[[], Awaitable[T | None]], *, within_s: float = 60.0, what: str = "it"
) -> T:
    """Return the first answer of `probe` that is neither None nor False.

    Raises `AssertionError` with the last answer's absence after `within_s` seconds.
    """
    try:
        async with asyncio.timeout(within_s):
            while True:
                found = await probe()
                if found is not None and found is not False:
                    return found
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{what} did not happen within {within_s} s") from None
