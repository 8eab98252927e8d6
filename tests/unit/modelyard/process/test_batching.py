"""Carrying several things in one go, and awaiting several at once."""

import asyncio
from collections.abc import Sequence

import pytest

from modelyard.contract.errors import BrokerUnavailableError, StoreUnavailableError
from modelyard.process.batching import Coalescer, StoppedError
from modelyard.process.tasks import together


async def double(items: Sequence[int]) -> list[int | Exception]:
    return [2 * item for item in items]


async def test_what_waits_shares_one_flush() -> None:
    flushes: list[list[int]] = []

    async def flush(items: Sequence[int]) -> list[int | Exception]:
        flushes.append(list(items))
        return await double(items)

    coalescer: Coalescer[int, int] = Coalescer(flush, max_items=2)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(coalescer.submit(item)) for item in (1, 2, 3)]
        await asyncio.sleep(0)
        running = tasks.create_task(coalescer.run())
        assert await asyncio.gather(*waiting) == [2, 4, 6]
        running.cancel()
    assert flushes == [[1, 2], [3]]


async def test_who_waits_when_the_flushing_is_cancelled_is_told() -> None:
    flushing = asyncio.Event()

    async def flush(items: Sequence[int]) -> list[int | Exception]:
        flushing.set()
        await asyncio.Event().wait()
        return await double(items)

    coalescer: Coalescer[int, int] = Coalescer(flush, max_items=1)
    async with asyncio.timeout(5):
        running = asyncio.create_task(coalescer.run())
        carried = asyncio.create_task(coalescer.submit(1))
        await flushing.wait()
        queued = asyncio.create_task(coalescer.submit(2))
        await asyncio.sleep(0)
        running.cancel()
        for waiting in (carried, queued):
            with pytest.raises(StoppedError):
                await waiting
        with pytest.raises(StoppedError):
            await coalescer.submit(3)
        with pytest.raises(asyncio.CancelledError):
            await running


@pytest.mark.parametrize("results", [[], [1, 2]])
async def test_a_wrong_number_of_results_fails_the_callers_and_not_the_flushing(
    results: list[int | Exception],
) -> None:
    answers: list[list[int | Exception]] = [results, [7]]

    async def flush(_: Sequence[int]) -> list[int | Exception]:
        return answers.pop(0)

    coalescer: Coalescer[int, int] = Coalescer(flush, max_items=1)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(coalescer.run())
        with pytest.raises(ValueError, match="1 items returned"):
            await coalescer.submit(1)
        assert await coalescer.submit(2) == 7
        running.cancel()


async def failing(error: Exception) -> None:
    raise error


async def stubborn(error: Exception) -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise error from None


async def test_one_failure_comes_out_as_itself() -> None:
    with pytest.raises(StoreUnavailableError):
        await together(failing(StoreUnavailableError()), asyncio.sleep(60))


async def test_a_bug_goes_before_a_store_that_is_away() -> None:
    with pytest.raises(KeyError) as raised:
        await together(failing(StoreUnavailableError()), stubborn(KeyError("bug")))
    group = raised.value.__cause__
    assert isinstance(group, ExceptionGroup)
    assert {type(one) for one in group.exceptions} == {StoreUnavailableError, KeyError}


async def test_of_several_parts_that_are_away_the_first_is_named() -> None:
    with pytest.raises(StoreUnavailableError) as raised:
        await together(failing(StoreUnavailableError()), stubborn(BrokerUnavailableError()))
    assert isinstance(raised.value.__cause__, ExceptionGroup)


async def test_groups_have_a_distance_and_what_comes_alone_does_not_wait() -> None:
    loop = asyncio.get_running_loop()
    flushes: list[tuple[float, list[int]]] = []

    async def flush(items: Sequence[int]) -> list[int]:
        flushes.append((loop.time(), list(items)))
        return list(items)

    coalescer = Coalescer[int, int](flush, max_items=10, every_s=0.2)
    running = asyncio.create_task(coalescer.run())
    together = [coalescer.enqueue(number) for number in (1, 2)]
    await asyncio.gather(*together)
    await asyncio.gather(coalescer.submit(3))
    await coalescer.submit(4)
    running.cancel()
    (first, one), (second, two), (third, three) = flushes
    assert [one, two, three] == [[1, 2], [3], [4]]
    assert second - first >= 0.2
    assert third - second < 0.2
