"""What the gateway knows of the things it leans on, so that no request waits for a dead one."""

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import TypeVar

import structlog

from modelyard.broker import backoff_s
from modelyard.contract.errors import BrokerUnavailableError, StoreUnavailableError

log = structlog.get_logger(__name__)

PROBE_MOST_S = 2.0
"""The longest pause between two probes of a part that is down."""

T = TypeVar("T")


class Condition(StrEnum):
    """What is known of one part."""

    UNKNOWN = "unknown"
    """Not asked yet: requests try it."""
    UP = "up"
    DOWN = "down"
    """It failed a moment ago: requests don't try it, `watch` does."""


class Availability:
    """One part: calls go through `ask`, which stops asking while the part is down."""

    def __init__(
        self,
        name: str,
        probe: Callable[[], Awaitable[None]],
        error: type[StoreUnavailableError | BrokerUnavailableError],
    ) -> None:
        """`probe` returns if the part answers, and raises `error` if it does not."""
        self.name = name
        self.condition = Condition.UNKNOWN
        self._probe = probe
        self._error = error
        self._unsure = asyncio.Event()
        self._unsure.set()

    @property
    def down(self) -> bool:
        """True if it failed a moment ago."""
        return self.condition is Condition.DOWN

    async def ask(self, call: Callable[[], Awaitable[T]], *, within_s: float) -> T:
        """Return what the call returns.

        Raises the part's own unavailable error: at once while the part is down, otherwise when
        the call raises one or takes longer than `within_s` seconds; then the part is down. Its
        message is for clients and names no address.
        """
        if self.down:
            raise self._error()
        try:
            async with asyncio.timeout(within_s):
                return await call()
        except self._error as error:
            self.failed(str(error))
            raise self._error() from error
        except TimeoutError as error:
            self.failed(f"no answer within {within_s} s")
            raise self._error() from error

    def failed(self, reason: str) -> None:
        """Note that it did not answer; requests leave it alone until a probe gets through."""
        if not self.down:
            log.warning("part.down", part=self.name, reason=reason)
        self.condition = Condition.DOWN
        self._unsure.set()

    def answered(self) -> None:
        """Note that a probe got through."""
        if self.down:
            log.info("part.up", part=self.name)
        self.condition = Condition.UP
        self._unsure.clear()

    async def check(self, ping: Callable[[], Awaitable[None]], *, within_s: float) -> Condition:
        """Ask it now, unless it is known to be down, and return what is known then."""
        try:
            await self.ask(ping, within_s=within_s)
        except self._error:
            return Condition.DOWN
        return Condition.UP

    async def watch(self) -> None:
        """Probe at start and whenever it is down, until it answers. Runs until cancelled."""
        failures = 0
        while True:
            await self._unsure.wait()
            try:
                await self._probe()
            except self._error as error:
                failures += 1
                self.failed(str(error))
                await asyncio.sleep(backoff_s(failures, most_s=PROBE_MOST_S))
            else:
                failures = 0
                self.answered()
