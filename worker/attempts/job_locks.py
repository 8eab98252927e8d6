"""One lock for each job: exclusive verbs run alone, shared ones together, first come, first served.

The dispatcher already orders a job's operations. The lock protects the job even if it does not.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Waiter:
    granted: asyncio.Future[None]
    shared_by: int | None
    """How many may hold the lock together; None: only this one."""


@dataclass(slots=True)
class _JobLock:
    waiting: deque[_Waiter] = field(default_factory=deque)
    sharing: int = 0
    exclusive: bool = False

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.sharing and not self.exclusive

    def grant_waiting(self) -> None:
        """Grant the lock to the first in the queue for as long as the first may have it."""
        while self.waiting and self._can_grant(self.waiting[0]):
            waiter = self.waiting.popleft()
            if waiter.granted.cancelled():
                continue
            if waiter.shared_by is None:
                self.exclusive = True
            else:
                self.sharing += 1
            waiter.granted.set_result(None)

    def release(self, waiter: _Waiter) -> None:
        if waiter.shared_by is None:
            self.exclusive = False
        else:
            self.sharing -= 1

    def _can_grant(self, waiter: _Waiter) -> bool:
        if waiter.granted.cancelled():
            return True
        if self.exclusive:
            return False
        return not self.sharing if waiter.shared_by is None else self.sharing < waiter.shared_by


class JobLocks:
    """A fair lock for each job; it exists while someone holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: dict[str, _JobLock] = {}

    @asynccontextmanager
    async def hold(self, job_id: str, *, shared_by: int | None = None) -> AsyncIterator[None]:
        """Hold the job's lock: alone, or together with others up to `shared_by` in all."""
        lock = self._locks.setdefault(job_id, _JobLock())
        waiter = _Waiter(asyncio.get_running_loop().create_future(), shared_by)
        lock.waiting.append(waiter)
        lock.grant_waiting()
        try:
            await waiter.granted
            yield
        finally:
            if waiter.granted.done() and not waiter.granted.cancelled():
                lock.release(waiter)
            waiter.granted.cancel()
            lock.grant_waiting()
            if lock.idle:
                self._locks.pop(job_id, None)
