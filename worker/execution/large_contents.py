"""Limits the memory that large inputs and results take: few operations at a time have them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from modelyard.contract.content.results import ResultContent
from modelyard.contract.content.transfers import StoredResult
from modelyard.contract.messages import HostCommand
from modelyard.contract.states import Phase
from worker.attempts.attempt import Attempt
from worker.attempts.transfer import UploadedInput
from worker.model_server.results import LargeResult, Result

KeptResult = str | ResultContent | StoredResult
"""A result as an attempt reports it."""

MOST_AT_ONCE = 2
"""Operations that hold large content at the same time; each may take three times 64 MiB."""


class LargeContents:
    """The turns of operations with large content. They outlive incarnations."""

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


async def received(command: HostCommand, attempt: Attempt, turn: "Turn") -> UploadedInput | None:
    """Return the uploaded input of a command, once it is its turn; None if it has none."""
    if command.input_id is None:
        return None
    await turn.take()
    return await attempt.transfer.receive(command)


async def kept(result: Result, command: HostCommand, attempt: Attempt) -> KeptResult:
    """Return a result as it is reported; a large one is handed over before."""
    if not isinstance(result, LargeResult):
        return result
    attempt.report(Phase.SAVING)
    return await attempt.transfer.send(command, result.content_type, result.content)


class Turn:
    """The turn of one operation: it takes one for its input and its result together.

    If it took one for each, operations that hold their inputs could wait for each other.
    """

    def __init__(self, turns: asyncio.Semaphore) -> None:
        self._turns = turns
        self._taken = False

    async def take(self) -> None:
        """Wait for the turn; return at once if it is taken already."""
        if not self._taken:
            await self._turns.acquire()
            self._taken = True

    def end(self) -> None:
        """Give the turn to the next operation."""
        if self._taken:
            self._turns.release()
            self._taken = False
