"""One lock a job: exclusive verbs run alone, shared ones together, first come, first served.

The dispatcher already orders a job's operations. The lock also holds when it makes a mistake.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Turn:
    granted: asyncio.Future[None]
    shared_by: int | None
    """How many may hold the lock together; None: only this one."""


@dataclass(slots=True)
class _Line:
    waiting: deque[_Turn] = field(default_factory=deque)
    sharing: int = 0
    exclusive: bool = False

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.sharing and not self.exclusive

    def admit(self) -> None:
        """Grant the lock to the first in the queue for as long as the first may have it."""
        while self.waiting and self._may_go(self.waiting[0]):
            turn = self.waiting.popleft()
            if turn.granted.cancelled():
                continue
            if turn.shared_by is None:
                self.exclusive = True
            else:
                self.sharing += 1
            turn.granted.set_result(None)

    def leave(self, turn: _Turn) -> None:
        if turn.shared_by is None:
            self.exclusive = False
        else:
            self.sharing -= 1

    def _may_go(self, turn: _Turn) -> bool:
        if turn.granted.cancelled():
            return True
        if self.exclusive:
            return False
        return not self.sharing if turn.shared_by is None else self.sharing < turn.shared_by


class JobLocks:
    """A fair lock for each job; it exists while someone holds it or waits for it."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}

    @asynccontextmanager
    async def hold(self, job_id: str, *, shared_by: int | None = None) -> AsyncIterator[None]:
        """Hold the job's lock: alone, or together with others up to `shared_by` in all."""
        line = self._lines.setdefault(job_id, _Line())
        turn = _Turn(asyncio.get_running_loop().create_future(), shared_by)
        line.waiting.append(turn)
        line.admit()
        try:
            await turn.granted
            yield
        finally:
            if turn.granted.done() and not turn.granted.cancelled():
                line.leave(turn)
            turn.granted.cancel()
            line.admit()
            if line.idle:
                self._lines.pop(job_id, None)
