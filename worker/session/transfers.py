"""Large inputs and results of one incarnation: piece by piece, each answered by the dispatcher.

A message or its answer may be lost, and a dispatcher may be replaced meanwhile: without an answer
the same is sent again. So the content of one transfer is in RabbitMQ with one piece at a time.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator

import structlog

from modelyard.contract.content.transfers import (
    MAX_CONTENT_BYTES,
    PIECE_BYTES,
    PieceOfResult,
    StoredResult,
    TransferAnswer,
    WorkerTransfer,
)
from modelyard.contract.errors import BrokerUnavailableError, ErrorCode, ModelyardError
from modelyard.contract.messages import HostCommand
from modelyard.process.crash_points import crash_point
from worker.attempts.transfer import UploadedInput
from worker.session.host_channel import HostChannel

log = structlog.get_logger(__name__)

AGAIN_S = 5.0
"""Seconds without an answer after which a piece is sent, or asked for, again."""

AT_ONCE = 2
"""Pieces of one host that are on their way at the same time; others wait for these few
milliseconds, in the order in which they came."""

_Key = tuple[str, int, int, bool]


class PiecewiseTransfer:
    """Sends and receives for the attempts of one incarnation."""

    def __init__(self, channel: HostChannel, *, again_s: float = AGAIN_S) -> None:
        self._channel = channel
        self._again_s = again_s
        self._on_the_way = asyncio.Semaphore(AT_ONCE)
        self._waiting: dict[_Key, asyncio.Future[TransferAnswer]] = {}

    async def receive(self, command: HostCommand) -> UploadedInput:
        """Return the uploaded input of a command; raises `input_gone`."""
        first = await self._ask(command, 0)
        if first.content_type is None or not 0 < first.size <= MAX_CONTENT_BYTES:
            raise _gone(command)
        return UploadedInput(first.content_type, first.size, self._pieces(command, first))

    async def _pieces(self, command: HostCommand, answer: TransferAnswer) -> AsyncIterator[bytes]:
        given = 0
        while True:
            given += len(answer.content)
            if not answer.content or given > answer.size:
                raise _gone(command)
            yield answer.content
            if given == answer.size:
                return
            answer = await self._ask(command, given // PIECE_BYTES)

    async def send(
        self, command: HostCommand, content_type: str, pieces: AsyncIterator[bytes]
    ) -> StoredResult:
        """Hand over a result; return once all of it is stored."""
        digest = hashlib.sha256()
        number = size = 0
        async for piece in pieces:
            digest.update(piece)
            await self._ask(command, number, PieceOfResult(content=piece))
            crash_point("worker.transfer.after_piece")
            number += 1
            size += len(piece)
        return StoredResult(content_type=content_type, size=size, sha256=digest.hexdigest())

    def answered(self, answer: TransferAnswer) -> None:
        """Give an answer to whoever waits for it; one that comes twice is dropped."""
        waiting = self._waiting.get(
            (answer.operation_id, answer.epoch, answer.number, answer.stored)
        )
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    async def _ask(
        self, command: HostCommand, number: int, result: PieceOfResult | None = None
    ) -> TransferAnswer:
        message = WorkerTransfer(
            host_id=self._channel.host_id,
            incarnation=self._channel.incarnation,
            job_id=command.job_id,
            operation_id=command.operation_id,
            epoch=command.epoch,
            number=number,
            result=result,
        )
        key = (command.operation_id, command.epoch, number, result is not None)
        answer: asyncio.Future[TransferAnswer] = asyncio.get_running_loop().create_future()
        self._waiting[key] = answer
        try:
            while True:
                async with self._on_the_way:
                    try:
                        await self._channel.publish_transfer(message.model_dump_json().encode())
                    except BrokerUnavailableError as error:
                        log.debug("transfer.waiting", number=number, error=str(error))
                    await asyncio.wait((answer,), timeout=self._again_s)
                if answer.done():
                    return answer.result()
        finally:
            self._waiting.pop(key, None)


def _gone(command: HostCommand) -> ModelyardError:
    return ModelyardError(ErrorCode.INPUT_GONE, input_id=command.input_id)
