"""Which models are in memory as far as this process knows, and which say that they are not. Pure.

Only an answer counts: a server that is silent may be busy, and so may be the worker that asks it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from modelyard.contract.topology import INVENTORY_INTERVAL_S
from worker.model_server.probes import ProbeVerdict

MISSES = 3
"""Looks with the answer NO, and none with YES between them, after which a model is unhealthy."""
SPACING_S = INVENTORY_INTERVAL_S / 2
"""Seconds that two looks must lie apart to count as two: a burst of looks is one."""


@dataclass(slots=True)
class _Misses:
    count: int = 0
    counted_at: float = float("-inf")


class ModelHealth:
    """By container id, what was put into memory and what answered."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` counts seconds."""
        self._clock = clock
        self._put: set[str] = set()
        self._out: set[str] = set()
        self._misses: dict[str, _Misses] = {}
        self.over_disk: dict[str, str] = {}
        """Containers that were ended for what they wrote to the disk, each with a sentence why."""
        self.stopped: set[str] = set()
        """Containers that were stopped because their servers can't unload: an UNLOAD whose engine
        did not answer comes again, and must not take that for a death."""

    def was_loaded(self, container_id: str) -> None:
        """Note that this process has put the container's model into memory."""
        self.forget(container_id)
        self._put.add(container_id)

    def was_unloaded(self, container_id: str) -> None:
        """Note that the model is not in memory: it was taken out, or its container starts."""
        self.forget(container_id)
        self._out.add(container_id)

    def is_gone(self, container_id: str) -> None:
        """Note that a container was removed."""
        self.forget(container_id)
        self.over_disk.pop(container_id, None)
        self.stopped.discard(container_id)

    def forget(self, container_id: str) -> None:
        """Know nothing of a container's memory any more: it does not run."""
        self._put.discard(container_id)
        self._out.discard(container_id)
        self._misses.pop(container_id, None)

    def put_into_memory(self, container_id: str) -> bool:
        """Tell whether this process has put it there: for servers that can't be asked."""
        return container_id in self._put

    def taken_out(self, container_id: str) -> bool:
        """Tell whether this process knows that the model is not in memory."""
        return container_id in self._out

    def looked(self, container_id: str, *, running: bool, answer: ProbeVerdict | None) -> bool:
        """Note what a look has seen; return whether the model is unhealthy.

        `answer` is None if the server was not asked. After a boot nothing is known of a container:
        what answers NO then counts too, and means something if the record has the job as LOADED.
        """
        if not running:
            self.forget(container_id)  # one that has ended is no question of health
            return False
        if answer is ProbeVerdict.YES:
            self._out.discard(container_id)
            self._misses.pop(container_id, None)
        if answer is ProbeVerdict.NO and container_id not in self._out:
            self._count(self._misses.setdefault(container_id, _Misses()))
        misses = self._misses.get(container_id)
        return misses is not None and misses.count >= MISSES

    def _count(self, misses: _Misses) -> None:
        now = self._clock()
        if now - misses.counted_at >= SPACING_S:
            misses.count += 1
            misses.counted_at = now

    @property
    def known(self) -> frozenset[str]:
        """The containers of which anything is remembered."""
        remembered = (self._put, self._out, self._misses, self.over_disk, self.stopped)
        return frozenset().union(*remembered)
