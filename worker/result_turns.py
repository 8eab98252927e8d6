"""Reading large results without holding up everybody else.

Parsing 1 MiB of JSON takes the event loop up to 0.15 s, and a hundred such answers may come at
once. So the results of one container are read one after another, with a rest between two.
"""

import asyncio
import time
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from worker.hooks import Reply, result_in

REST = 2.0
"""How many times as long as a reading took, the same container's next one is put off."""


@dataclass(eq=False, slots=True, weakref_slot=True)
class _Turn:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    rests_until: float = 0.0


class ResultTurns:
    """Whose result is read when."""

    def __init__(self) -> None:
        self._turns: WeakValueDictionary[str, _Turn] = WeakValueDictionary()

    async def read(self, container_id: str, reply: Reply) -> str:
        """Return the result in `reply` when it is this container's turn; raises as `result_in`."""
        turn = self._turns.get(container_id) or _Turn()
        self._turns[container_id] = turn
        async with turn.lock:
            await asyncio.sleep(max(0.0, turn.rests_until - time.monotonic()))
            began = time.monotonic()
            try:
                return result_in(reply)
            finally:
                now = time.monotonic()
                turn.rests_until = now + REST * (now - began)
