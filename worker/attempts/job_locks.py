"""Per job: exclusive verbs alone, shared ones together, in the order in which they came.

The dispatcher already orders a job's operations; this is the second fence.
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
    """How many may hold it together; None: nobody else."""


@dataclass(slots=True)
class _Line:
    waiting: deque[_Turn] = field(default_factory=deque)
    sharing: int = 0
    exclusive: bool = False

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.sharing and not self.exclusive

    def admit(self) -> None:
        """Grant from the head of the line as long as the head may go."""
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
    """One fair lock for each job that anyone holds or waits for."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}

    @asynccontextmanager
    async def hold(self, job_id: str, *, shared_by: int | None = None) -> AsyncIterator[None]:
        """Hold the job, alone or with up to `shared_by` in all."""
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
