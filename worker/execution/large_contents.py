"""Large results: from a server they pass through; of the files of batches few are in memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from modelyard.contract.content.media_types import media_type_of
from modelyard.contract.content.transfers import PIECE_BYTES, StoredResult
from modelyard.contract.messages import HostCommand
from modelyard.contract.states import Phase
from worker.attempts.attempt import Attempt
from worker.model_server.client import KeepLarge
from worker.model_server.results import KeptResult, LargeResult, Result

MOST_AT_ONCE = 2
"""Batches that hold a large file at the same time; each may take three times 64 MiB."""


class LargeContents:
    """The turns of batches with a large file. They outlive incarnations.

    A container that has ended can't prolong a turn: its file is read from the engine and handed
    over to the dispatcher. What depends on a model server must never take one.
    """

    def __init__(self, most: int = MOST_AT_ONCE) -> None:
        self._turns = asyncio.Semaphore(most)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator["Turn"]:
        """Yield a turn that may be taken; it ends with the context."""
        turn = Turn(self._turns)
        try:
            yield turn
        finally:
            turn.end()


async def kept(result: Result, command: HostCommand, attempt: Attempt) -> KeptResult:
    """Return a result as it is reported; a large one is handed over before."""
    if not isinstance(result, LargeResult):
        return result
    attempt.report(Phase.SAVING)
    return await attempt.transfer.send(command, result.content_type, _pieces(result.content))


def keeping(command: HostCommand, attempt: Attempt) -> KeepLarge:
    """Return what hands over a large answer of a model server while it is read."""

    async def keep(content_type: str, pieces: AsyncIterator[bytes]) -> StoredResult:
        attempt.report(Phase.SAVING)
        return await attempt.transfer.send(command, media_type_of(content_type), pieces)

    return keep


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), PIECE_BYTES):
        yield content[start : start + PIECE_BYTES]


class Turn:
    """The turn of one batch."""

    def __init__(self, turns: asyncio.Semaphore) -> None:
        self._turns = turns
        self._taken = False

    async def take(self) -> None:
        """Wait for the turn; return at once if it is taken already."""
        if not self._taken:
            await self._turns.acquire()
            self._taken = True

    def end(self) -> None:
        """Give the turn to the next batch."""
        if self._taken:
            self._turns.release()
            self._taken = False
