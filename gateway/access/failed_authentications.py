"""Failed authentications: counted for each address, logged, and answered slowly.

Only failed requests are slowed. A request with a key that the gateway has seen to be valid is
answered at once, even if other requests from the same address fail: many clients may share a proxy.
While an address has its maximum of delayed answers, other keys from it are not looked up.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from gateway.access.client_places import ClientPlaces, address_group
from gateway.caches.newest import Newest

log = structlog.get_logger(__name__)

FIRST_PAUSE_S = 0.1
MOST_PAUSE_S = 2.0
FORGOTTEN_S = 300.0
"""Seconds without a failure after which an address's count starts at zero again."""
MAX_ADDRESSES = 10_000
MAX_PAUSED = 200
MAX_PAUSED_OF_ADDRESS = 8
"""Most delayed answers at the same time; beyond that, the connection is closed instead."""


@dataclass(slots=True)
class _Failures:
    count: int = 0
    last: float = 0.0


class FailedAuthentications:
    """Counts failed authentications and delays their answers; its memory is bounded."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: Newest[str, _Failures] = Newest(MAX_ADDRESSES)
        self._paused = ClientPlaces(MAX_PAUSED, MAX_PAUSED_OF_ADDRESS)

    async def hold_back(self, address: str | None, key_id: str | None) -> bool:
        """Count a failure and wait; false if too many answers wait: then close the connection."""
        group = address_group(address)
        count = self.count(address, key_id)
        if self._paused.full or self._paused.at_limit(group):
            return False
        with self._paused.hold(group):
            await asyncio.sleep(pause_s(count))
        return True

    def at_limit(self, address: str | None) -> bool:
        """Tell whether this address has its maximum of delayed answers."""
        return self._paused.at_limit(address_group(address))

    def count(self, address: str | None, key_id: str | None) -> int:
        """Count a failure, log it, and return the count of its address."""
        count = self._counted(address_group(address))
        if count & (count - 1) == 0:  # log 1, 2, 4, 8, ..., so that failures can't flood the log
            log.warning("authentication.failed", address=address, key_id=key_id, failures=count)
        return count

    def _counted(self, group: str) -> int:
        now = self._clock()
        known = self._failures.get(group)
        if known is None or now - known.last > FORGOTTEN_S:
            known = _Failures()
        known.count += 1
        known.last = now
        self._failures[group] = known
        return known.count


def pause_s(failures: int) -> float:
    """Return for how many seconds the answer is delayed after so many failures."""
    return min(FIRST_PAUSE_S * 2.0 ** min(failures - 1, 16), MOST_PAUSE_S)
