"""The sweep: repairs what a crash left half done, from the record alone.

Each repair is a guarded write that may find nothing to do, so it may run concurrently with
everything else, also while a dispatcher whose term is over finishes what it was at.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from dispatcher.leadership import Term
from dispatcher.metrics import DispatcherMetrics
from modelyard.contract.errors import StoreUnavailableError

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Repair:
    """A function that may run repeatedly, and its name for the logs."""

    name: str
    run: Callable[[], Awaitable[object]]
    """May raise `StoreUnavailableError`."""


class Sweep:
    """Runs all repairs at an interval, for ever."""

    def __init__(
        self,
        repairs: Sequence[Repair],
        term: Term,
        metrics: DispatcherMetrics,
        *,
        on_failure: Callable[[], None],
    ) -> None:
        """Call `on_failure` after each round in which the store was unavailable."""
        self._repairs = tuple(repairs)
        self._term = term
        self._metrics = metrics
        self._on_failure = on_failure

    async def run(self, *, interval_s: float) -> None:
        """Sweep for ever; log one line for each streak of failures of a repair.

        A repair that fails does not keep the others from being tried. Raises `NotLeadingError` once
        the term is over.
        """
        failing: set[str] = set()
        while True:
            began = time.monotonic()
            for repair in self._repairs:
                self._term.check()
                try:
                    await repair.run()
                    failing.discard(repair.name)
                except StoreUnavailableError as error:
                    if repair.name not in failing:
                        log.warning("sweep.store_unavailable", repair=repair.name, error=str(error))
                    failing.add(repair.name)
                    self._metrics.repair_failed(repair.name)
            self._metrics.swept(time.monotonic() - began)
            if failing:
                self._on_failure()
            await asyncio.sleep(interval_s)
