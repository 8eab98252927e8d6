"""Positions in line: each higher than all before it, whoever gives it out."""

import pytest

from dispatcher.intake.positions import BLOCK, Positions
from dispatcher.leadership import NotLeadingError, Term
from modelyard.contract.errors import StoreUnavailableError
from tests.fakes.broker_links import Call
from tests.support.dispatcher.parts import ENDLESS, DispatcherParts


async def test_each_position_is_higher_than_all_before_it() -> None:
    positions = DispatcherParts().positions
    given = [position for count in (1, 3, 2) for position in await positions.take(count)]
    assert given == list(range(given[0], given[0] + 6))


async def test_a_block_is_taken_with_one_write() -> None:
    parts = DispatcherParts()
    for _ in range(BLOCK):
        await parts.positions.take(1)
    assert parts.link.calls[Call.WRITE] == 1
    await parts.positions.take(1)
    assert parts.link.calls[Call.WRITE] == 2


@pytest.mark.parametrize("count", [BLOCK, BLOCK + 1])
async def test_more_than_what_is_left_comes_from_a_block_of_its_own(count: int) -> None:
    positions = DispatcherParts().positions
    (first,) = await positions.take(1)
    taken = await positions.take(count)
    assert len(taken) == count
    assert taken[0] > first + 1
    assert (await positions.take(1))[0] > taken[-1]


async def test_no_position_is_taken_for_nothing() -> None:
    parts = DispatcherParts()
    assert len(await parts.positions.take(0)) == 0
    assert parts.link.calls[Call.WRITE] == 0


async def test_a_later_leader_gives_out_only_higher_ones() -> None:
    parts = DispatcherParts()
    later = Positions(parts.store, Term(2, ENDLESS))
    earlier = await parts.positions.take(5)
    assert (await later.take(1))[0] > earlier[-1] + BLOCK - 5


async def test_a_block_whose_answer_is_lost_is_never_used() -> None:
    parts = DispatcherParts()
    parts.link.fates.append("lost_after")
    with pytest.raises(StoreUnavailableError):
        await parts.positions.take(1)
    assert (await parts.positions.take(1))[0] > BLOCK


async def test_whose_term_is_over_gives_out_none() -> None:
    parts = DispatcherParts()
    await parts.positions.take(1)
    parts.term.end()
    with pytest.raises(NotLeadingError):
        await parts.positions.take(1)
