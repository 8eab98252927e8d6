"""Results that take long to read: one container's wait for each other, other containers' do not."""

import asyncio

import pytest

from modelyard.contract.errors import ModelyardError
from worker.hooks import Reply
from worker.result_turns import ResultTurns

LARGE = b"[" + b"[]," * 100_000 + b"1]"


def reply(body: bytes) -> Reply:
    return Reply("POST /infer", 200, "application/json", (), body)


async def test_large_results_of_one_container_leave_turns_to_everybody_else() -> None:
    turns = ResultTurns()
    order: list[str] = []

    async def read(container: str, body: bytes) -> None:
        await turns.read(container, reply(body))
        order.append(container)

    async with asyncio.timeout(30):
        await asyncio.gather(*(read("large", LARGE) for _ in range(4)), read("small", b"1"))
    assert order.index("small") <= 1


async def test_a_reading_is_followed_by_a_rest_in_proportion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns = ResultTurns()
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await pause(0)

    pause = asyncio.sleep
    monkeypatch.setattr("worker.result_turns.asyncio.sleep", sleep)
    await asyncio.gather(*(turns.read("c", reply(LARGE)) for _ in range(2)))
    assert slept[0] == 0.0
    assert slept[1] > 0.0


async def test_a_result_that_can_not_be_read_ends_its_turn() -> None:
    turns = ResultTurns()
    with pytest.raises(ModelyardError):
        await turns.read("c", reply(b"no JSON"))
    async with asyncio.timeout(10):
        assert await turns.read("c", reply(b"[1, 2]")) == "[1,2]"
