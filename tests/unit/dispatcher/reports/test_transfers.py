"""Pieces of large content: given and taken only for attempts that the record has on that host."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from dispatcher.control import ControlPublisher
from dispatcher.reports.transfers import Transfers
from modelyard.contract.content.transfers import (
    PIECE_BYTES,
    PieceOfResult,
    TransferAnswer,
    WorkerTransfer,
)
from modelyard.contract.messages import CancelOperation, JobRequest
from modelyard.contract.states import Verb
from modelyard.store.content.results import BUCKET, file_of
from modelyard.store.records import NewOperation
from tests.support.dispatcher.parts import HOST, INCARNATION, JOB, DispatcherParts

INPUT = b"\x89PNG" * PIECE_BYTES


class SpokenTo(ControlPublisher):
    """Keeps what workers are told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, dict[str, Any]]] = []

    async def send(self, host_id: str, incarnation: str, **words: Any) -> None:
        self.told.append((host_id, incarnation, {k: list(v) for k, v in words.items()}))

    @property
    def answer(self) -> TransferAnswer:
        host_id, incarnation, words = self.told[-1]
        assert (host_id, incarnation) == (HOST, INCARNATION)
        [answer] = words["transfers"]
        assert isinstance(answer, TransferAnswer)
        return answer


class Transferring:
    """One inference with an uploaded input, on a host."""

    def __init__(self) -> None:
        self.parts = DispatcherParts()
        self.control = SpokenTo()
        self.transfers = Transfers(self.parts.store, self.control)

    async def begin(self) -> None:
        async def content() -> AsyncIterator[bytes]:
            yield INPUT

        stored = await self.parts.store.inputs.put("image/png", "default", content())
        request = JobRequest(job_id=JOB, operation_type=Verb.INFER, input_id=stored.file_id)
        self.input_id = stored.file_id
        self.one = NewOperation.of(stored.file_id, request, "http")
        await self.parts.begin()
        await self.parts.lines.read([JOB])
        assert await self.parts.first_pass.take([self.one]) == []

    def message(self, number: int = 0, **more: Any) -> WorkerTransfer:
        fields: dict[str, object] = {
            "host_id": HOST,
            "incarnation": INCARNATION,
            "job_id": JOB,
            "operation_id": self.one.operation_id,
            "epoch": 1,
            "number": number,
        }
        return WorkerTransfer.model_validate({**fields, **more})


@pytest.fixture
async def there() -> Transferring:
    made = Transferring()
    await made.begin()
    return made


async def test_a_worker_gets_its_input_piece_by_piece(there: Transferring) -> None:
    content = bytearray()
    for number in range(5):
        await there.transfers.answer(there.message(number))
        answer = there.control.answer
        if answer.content_type is None:
            break
        assert (answer.content_type, answer.size) == ("image/png", len(INPUT))
        content += answer.content
    assert number == 4
    assert content == INPUT


async def test_an_input_that_is_gone_is_said_to_be(there: Transferring) -> None:
    await there.parts.store.inputs._files.delete(there.input_id)
    await there.transfers.answer(there.message())
    assert there.control.answer.content_type is None
    assert there.control.answer.stored is False


async def test_a_piece_is_told_to_be_stored_once_it_is(there: Transferring) -> None:
    piece = PieceOfResult(content=b"piece")
    for _ in range(2):
        await there.transfers.answer(there.message(result=piece))
        assert there.control.answer.stored
    (stored,) = there.parts.database.documents(f"{BUCKET}.chunks")
    assert stored["files_id"] == file_of(there.one.operation_id, 1)
    assert bytes(stored["data"]) == b"piece"


@pytest.mark.parametrize(
    "other",
    [{"host_id": "h9"}, {"incarnation": "boot-9"}, {"epoch": 2}, {"job_id": "j9"}],
)
@pytest.mark.parametrize("result", [None, PieceOfResult(content=b"forged")])
async def test_an_attempt_that_is_not_current_gets_nothing_and_is_told_to_stop(
    there: Transferring, other: dict[str, Any], result: PieceOfResult | None
) -> None:
    message = there.message(result=result, **other)
    await there.transfers.answer(message)
    [(host_id, incarnation, words)] = there.control.told
    assert (host_id, incarnation) == (message.host_id, message.incarnation)
    cancel = CancelOperation(operation_id=message.operation_id, epoch=message.epoch, reason="stale")
    assert words == {"cancels": [cancel]}
    assert there.parts.database.documents(f"{BUCKET}.files") == []


def test_a_piece_is_never_larger_than_it_may_be() -> None:
    with pytest.raises(ValueError, match="at most"):
        PieceOfResult(content=b"x" * (PIECE_BYTES + 1))
