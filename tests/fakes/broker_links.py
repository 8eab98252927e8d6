"""The way from one process to a server in memory, and what may happen to it."""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Literal

Fate = Literal["lost_before", "lost_after"]
"""What becomes of one call: nobody heard of it, or it took effect and its answer was lost."""

Failure = Callable[[str], Exception]


class Call(Enum):
    """What a call is to its server, and so what it has to wait for there."""

    READ = "read"
    WRITE = "write"
    """It is answered once a majority of the database's members have it."""
    DURABLE_MESSAGE = "durable message"
    """It is delivered, and confirmed, once a majority of the broker's members have it."""
    PASSING_MESSAGE = "passing message"
    """Only queues that end with their consumers take it."""
    ENGINE = "engine"
    OTHER = "other"


async def at_once() -> None:
    """Let others run, as every call to a server does; no time passes."""
    await asyncio.sleep(0)


class Link:
    """One process's way to one server. Tests change it at any time."""

    def __init__(
        self,
        *,
        failure: Failure = ConnectionError,
        pause: Callable[[], Awaitable[None]] = at_once,
    ) -> None:
        """`failure` makes what a lost call raises; `pause` is awaited on the way there and back."""
        self.failure = failure
        self.pause = pause
        self.up = True
        """False: every call fails at once."""
        self.silent = False
        """True: no call is ever answered, or takes effect."""
        self.slow_s = 0.0
        """Seconds that each message on it takes beside."""
        self.fates: deque[Fate | None] = deque()
        """What becomes of the next calls; None: nothing."""
        self.costs_s: dict[Call, float] = {}
        """Seconds that the server takes before a call of this kind has its effect."""
        self.calls: Counter[Call] = Counter()
        """How many calls were made."""

    async def there(self, call: Call = Call.OTHER, *, count: int = 1) -> Fate | None:
        """Carry a call to the server, or several at once; return what becomes of the answer."""
        self.calls[call] += count
        fate = self.fates.popleft() if self.fates else None
        await self._reach()
        await self._take_time()
        if cost_s := self.costs_s.get(call):
            await asyncio.sleep(cost_s)
        await self._reach()
        if fate == "lost_before":
            raise self.failure("The call was lost.")
        return fate

    async def back(self, fate: Fate | None) -> None:
        """Carry the answer back."""
        await self._take_time()
        await self._reach()
        if fate == "lost_after":
            raise self.failure("The answer was lost.")

    async def _take_time(self) -> None:
        if self.slow_s:
            await asyncio.sleep(self.slow_s)
        await self.pause()

    async def _reach(self) -> None:
        if self.silent:
            await asyncio.Event().wait()
        if not self.up:
            raise self.failure("The server is away.")
