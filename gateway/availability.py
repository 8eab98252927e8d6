"""The availability of RabbitMQ and MongoDB: while one is down, no request waits for it."""

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import TypeVar

import structlog

from modelyard.broker import backoff_s
from modelyard.contract.errors import BrokerUnavailableError, StoreUnavailableError

log = structlog.get_logger(__name__)

TOOK_LONG = "It took too long to read what was asked for."
PROBE_MOST_S = 2.0
"""The longest pause between two probes of a dependency that is down."""

T = TypeVar("T")


class Condition(StrEnum):
    """The known condition of one dependency."""

    UNKNOWN = "unknown"
    """It has not been called yet: requests call it."""
    UP = "up"
    DOWN = "down"
    """Its last call failed: requests don't call it, `watch` probes it."""


class Availability:
    """A circuit breaker for one dependency: `ask` makes no calls while it is down."""

    def __init__(
        self,
        name: str,
        probe: Callable[[], Awaitable[None]],
        error: type[StoreUnavailableError | BrokerUnavailableError],
    ) -> None:
        """`probe` returns if the dependency answers, and raises `error` if it does not."""
        self.name = name
        self.condition = Condition.UNKNOWN
        self._probe = probe
        self._error = error
        self._unsure = asyncio.Event()
        self._unsure.set()

    @property
    def down(self) -> bool:
        """True from a failed call until a probe succeeds."""
        return self.condition is Condition.DOWN

    async def ask(
        self, call: Callable[[], Awaitable[T]], *, within_s: float, may_be_slow: bool = False
    ) -> T:
        """Return the result of `call`.

        Raises the dependency's error (`error` of the constructor): at once while it is down,
        otherwise if the call raises that error or takes longer than `within_s` seconds. Either
        marks it as down, but with `may_be_slow` not the time: the call may take long for what is
        asked. The error's message is for clients and names no address.
        """
        if self.down:
            raise self._error()
        deadline = asyncio.get_running_loop().time() + within_s
        return await self.answer_of(call(), deadline, may_be_slow=may_be_slow)

    async def answer_of(
        self, call: Awaitable[T], deadline: float, *, may_be_slow: bool = False
    ) -> T:
        """Return the result of a call that was made while the dependency was not down.

        `deadline` is a time of the event loop. Raises as `ask` does.
        """
        try:
            async with asyncio.timeout_at(deadline):
                return await call
        except self._error as error:
            self.failed(str(error))
            raise self._error() from error
        except TimeoutError as error:
            if may_be_slow:
                raise self._error(TOOK_LONG) from error
            self.failed("no answer in time")
            raise self._error() from error

    def failed(self, reason: str) -> None:
        """Mark the dependency as down: requests don't call it until a probe succeeds."""
        if not self.down:
            log.warning("part.down", part=self.name, reason=reason)
        self.condition = Condition.DOWN
        self._unsure.set()

    def answered(self) -> None:
        """Mark the dependency as up."""
        if self.down:
            log.info("part.up", part=self.name)
        self.condition = Condition.UP
        self._unsure.clear()

    async def check(self, ping: Callable[[], Awaitable[None]], *, within_s: float) -> Condition:
        """Ping the dependency, unless it is known to be down; return its condition then."""
        try:
            await self.ask(ping, within_s=within_s)
        except self._error:
            return Condition.DOWN
        return Condition.UP

    async def watch(self) -> None:
        """Probe at start, and while the dependency is down. Runs until cancelled."""
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
