"""Which models are in memory as far as this process knows, and which have stopped to answer. Pure.

What it knows ends with the process: after a boot a model has to answer once before it can be
missed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from modelyard.contract.topology import INVENTORY_INTERVAL_S

MISSES = 3
"""Looks in a row without an answer after which a model is unhealthy."""
SPACING_S = INVENTORY_INTERVAL_S / 2
"""Seconds that two looks must lie apart to count as two: a burst of looks is one."""


@dataclass(slots=True)
class _Watched:
    misses: int = 0
    counted_at: float = float("-inf")


class Health:
    """By container id, what was put into memory and what answered."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` counts seconds."""
        self._clock = clock
        self._put: set[str] = set()
        self._answered: dict[str, _Watched] = {}
        self.over_disk: set[str] = set()
        """Containers that were ended for what they wrote to the disk."""

    def was_loaded(self, container_id: str) -> None:
        """Note that this process has put the container's model into memory."""
        self._put.add(container_id)
        self._answered[container_id] = _Watched()

    def was_unloaded(self, container_id: str) -> None:
        """Note that the model is not in memory any more, or its container is gone."""
        self._put.discard(container_id)
        self._answered.pop(container_id, None)

    def put_into_memory(self, container_id: str) -> bool:
        """Tell whether this process has put it there: for servers that can't be asked."""
        return container_id in self._put

    def looked(self, container_id: str, *, running: bool, answers: bool) -> bool:
        """Note what a look has seen; return whether the model is unhealthy.

        Only a model that was in memory can be, and only while its container runs: one that has
        ended is no question of health.
        """
        watched = self._answered.get(container_id)
        if not running:
            self.was_unloaded(container_id)
            return False
        if answers:
            self._answered[container_id] = _Watched()
            return False
        if watched is None:
            return False
        now = self._clock()
        if now - watched.counted_at >= SPACING_S:
            watched.misses += 1
            watched.counted_at = now
        return watched.misses >= MISSES

    @property
    def known(self) -> frozenset[str]:
        """The containers of which anything is remembered."""
        return frozenset(self._put | self._answered.keys())
