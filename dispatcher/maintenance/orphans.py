"""Orphans: containers of ours that the record does not know."""

import time
from collections.abc import Collection, Sequence

import structlog

from modelyard.contract.messages import InventoryItem

log = structlog.get_logger(__name__)


class Orphans:
    """The orphans (containers that are not in the record) of all hosts, and when each was found.

    They are kept only in memory: a dispatcher that restarts waits the whole grace period again.
    """

    def __init__(self, *, grace_s: float, dry_run: bool = False) -> None:
        """With `dry_run` no orphan is due for removal; the log names those that would be."""
        self._grace_s = grace_s
        self._dry_run = dry_run
        self._since: dict[tuple[str, str], float] = {}
        self.listed: dict[str, int] = {}
        """The number of containers in the last inventory of each host."""

    def count(self, host_ids: Collection[str]) -> int:
        """Return how many orphans these hosts have, as far as is known."""
        return sum(1 for host_id, _ in self._since if host_id in host_ids)

    def forget(self, host_ids: Collection[str]) -> None:
        """Keep nothing of hosts that were deleted."""
        self._since = {key: since for key, since in self._since.items() if key[0] not in host_ids}
        for host_id in host_ids:
            self.listed.pop(host_id, None)

    def due(self, host_id: str, items: Sequence[InventoryItem]) -> list[InventoryItem]:
        """Return the host's orphans that are to be removed: their grace period is over."""
        now = time.monotonic()
        known = {item.container_id for item in items}
        self._since = {
            key: since for key, since in self._since.items() if key[0] != host_id or key[1] in known
        }
        for item in items:
            if (host_id, item.container_id) not in self._since:
                log.warning(
                    "orphan.found",
                    host_id=host_id,
                    job_id=item.job_id,
                    generation=item.generation,
                    container_id=item.container_id,
                )
                self._since[host_id, item.container_id] = now
        due = [
            item for item in items if now - self._since[host_id, item.container_id] >= self._grace_s
        ]
        if not self._dry_run:
            return due
        for item in due:
            log.warning("orphan.kept_by_dry_run", host_id=host_id, container_id=item.container_id)
        return []
