"""What this process knows of the models in memory, and which models are unhealthy. Pure.

Only an answer counts. Silence proves nothing: the server may be busy, or the worker itself.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelyard.contract.topology import INVENTORY_INTERVAL_S
from worker.model_server.probes import ProbeResult, ProbeVerdict

if TYPE_CHECKING:
    from modelyard.contract.errors import ErrorInfo

MISSES = 3
"""Answers NO, without a YES between them, after which a model is unhealthy."""
SPACING_S = INVENTORY_INTERVAL_S / 2
"""Seconds that must lie between two answers for both to count: a burst of probes counts once."""


@dataclass(slots=True)
class Misses:
    """The answers NO of one model since its last YES."""

    last: ProbeResult
    count: int = 0
    """Those that count."""
    counted_at: float = float("-inf")


class ModelHealth:
    """What is known of each container's model, by container id."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` counts seconds."""
        self._clock = clock
        self._loaded: set[str] = set()
        self._unloaded: set[str] = set()
        self._misses: dict[str, Misses] = {}
        self.stop_causes: dict[str, ErrorInfo] = {}
        """Containers that this worker stopped for a cause that is no operation, such as what they
        wrote to the disk, each with the cause."""
        self.log_tails: dict[str, str] = {}
        """The end of the log of each container that was found dead, the one found last at the end;
        empty if it could not be read."""
        self.stopped: set[str] = set()
        """Containers that an UNLOAD stopped because their servers can't unload. If the engine did
        not answer, the UNLOAD is tried again and must not take the stop for a failure."""

    def record_loaded(self, container_id: str) -> None:
        """Record that this process has loaded the container's model."""
        self.forget(container_id)
        self._loaded.add(container_id)

    def record_unloaded(self, container_id: str) -> None:
        """Record that the model is not in memory: it was unloaded, or its container starts."""
        self.forget(container_id)
        self._unloaded.add(container_id)

    def record_starting(self, container_id: str) -> None:
        """Record that a container is about to start: why it stopped before does not matter now."""
        self.record_unloaded(container_id)
        self.stop_causes.pop(container_id, None)
        self.log_tails.pop(container_id, None)

    def record_removed(self, container_id: str) -> None:
        """Record that a container was removed."""
        self.forget(container_id)
        self.stop_causes.pop(container_id, None)
        self.log_tails.pop(container_id, None)
        self.stopped.discard(container_id)

    def forget(self, container_id: str) -> None:
        """Forget whether a container's model is in memory, and its answers."""
        self._loaded.discard(container_id)
        self._unloaded.discard(container_id)
        self._misses.pop(container_id, None)

    def known_loaded(self, container_id: str) -> bool:
        """Return whether this process has loaded the model: for servers that can't be asked."""
        return container_id in self._loaded

    def known_unloaded(self, container_id: str) -> bool:
        """Return whether this process knows that the model is not in memory."""
        return container_id in self._unloaded

    def record_answer(
        self, container_id: str, *, running: bool, probed: ProbeResult | None
    ) -> Misses | None:
        """Record an inventory's result for a container; return why its model is unhealthy.

        Returns None if it is not. `probed` is None if the server was not asked. NO does not count
        while this process knows that the model is unloaded. After a restart it knows nothing, so
        each NO counts; the dispatcher heeds the result only if its record has the job as LOADED.
        """
        if not running:
            self._misses.pop(container_id, None)  # a stopped container is not unhealthy
            self._loaded.discard(container_id)
            return None
        if probed is not None and probed.answer is ProbeVerdict.YES:
            self._unloaded.discard(container_id)
            self._misses.pop(container_id, None)
        elif (
            probed is not None
            and probed.answer is ProbeVerdict.NO
            and container_id not in self._unloaded
        ):
            self._count(self._misses.setdefault(container_id, Misses(probed)), probed)
        misses = self._misses.get(container_id)
        return misses if misses is not None and misses.count >= MISSES else None

    def _count(self, misses: Misses, probed: ProbeResult) -> None:
        misses.last = probed
        now = self._clock()
        if now - misses.counted_at >= SPACING_S:
            misses.count += 1
            misses.counted_at = now

    @property
    def known(self) -> frozenset[str]:
        """Ids of the containers of which anything is remembered."""
        models = (self._loaded, self._unloaded, self._misses)
        return frozenset().union(*models, self.stop_causes, self.log_tails, self.stopped)
