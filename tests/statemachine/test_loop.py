"""The loop that the state machine runs on: time that costs nothing, processes that can be held."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.statemachine.loop import Process, VirtualLoop, current_process


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    yield made
    made.finish()


async def ticks(into: list[float], *, each_s: float = 1.0) -> None:
    while True:
        into.append(asyncio.get_running_loop().time())
        await asyncio.sleep(each_s)


def test_a_day_of_waiting_ends_at_its_moment(loop: VirtualLoop) -> None:
    began = loop.time()
    loop.run(asyncio.sleep(86_400.0))
    assert loop.time() - began == pytest.approx(86_400.0)


def test_a_process_that_is_held_back_does_nothing_and_goes_on_where_it_stood(
    loop: VirtualLoop,
) -> None:
    process, seen = Process("p"), list[float]()
    began = loop.time()
    loop.start(process, ticks(seen))
    loop.advance(2.5)
    process.held_back = True
    loop.advance(10.0)
    assert [at - began for at in seen] == [0.0, 1.0, 2.0]
    loop.go_on(process)
    loop.advance(1.5)
    assert [at - began for at in seen[3:]] == [12.5, 13.5]


def test_what_a_process_begins_belongs_to_it_and_what_it_asks_of_a_server_does_not(
    loop: VirtualLoop,
) -> None:
    process, own, served = Process("p"), list[float](), list[float]()

    async def work() -> None:
        assert current_process() is process
        asyncio.get_running_loop().create_task(ticks(own))
        loop.serve(ticks(served))
        await asyncio.Event().wait()

    loop.start(process, work())
    loop.advance(1.5)
    process.held_back = True
    loop.advance(3.0)
    assert (len(own), len(served)) == (2, 5)


def test_a_timeout_that_passed_while_held_back_is_noticed_afterwards(loop: VirtualLoop) -> None:
    process, events = Process("p"), list[str]()

    async def work() -> None:
        try:
            async with asyncio.timeout(5.0):
                await asyncio.Event().wait()
        except TimeoutError:
            events.append("timed out")

    loop.start(process, work())
    loop.advance(1.0)
    process.held_back = True
    loop.advance(60.0)
    assert events == []
    loop.go_on(process)
    loop.advance(0.1)
    assert events == ["timed out"]


def test_whoever_spins_is_found_out(loop: VirtualLoop) -> None:
    async def spin() -> None:
        for _ in range(1_000_000):
            await asyncio.sleep(0)

    loop.serve(spin())
    with pytest.raises(RuntimeError, match="spinning"):
        loop.advance(1.0)
