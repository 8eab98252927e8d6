"""The budget of memory for large bodies."""

import asyncio

import pytest
from structlog.testing import capture_logs

from gateway.submission import body_budget
from gateway.submission.body_budget import BodyBudget, BudgetSpentError


async def test_a_share_comes_back_whatever_happens() -> None:
    budget = BodyBudget(10)

    async def use_and_fail() -> None:
        with budget.share() as share:
            await share.grow_to(6)
            await share.grow_to(4)
            assert budget.used == 6
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await use_and_fail()
    assert budget.used == 0


async def test_what_does_not_fit_waits_for_room_and_in_order() -> None:
    budget = BodyBudget(10)
    order: list[int] = []

    async def use(size: int) -> None:
        with budget.share() as share:
            await share.grow_to(size)
            order.append(size)

    with budget.share() as first:
        await first.grow_to(8)
        waiting = [asyncio.create_task(use(size)) for size in (9, 1)]
        await asyncio.sleep(0)
        assert order == []  # a small one does not overtake: the large one would wait for ever
    await asyncio.gather(*waiting)
    assert order == [9, 1]
    assert budget.used == 0


async def test_who_waits_too_long_is_refused_and_takes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(body_budget, "WAIT_S", 0.01)
    budget = BodyBudget(10)
    with budget.share() as first, budget.share() as second:
        await first.grow_to(8)
        with pytest.raises(BudgetSpentError):
            await second.grow_to(3)
        assert budget.used == 8
        await second.grow_to(2)
    assert budget.used == 0


async def test_who_goes_away_leaves_its_place_to_the_next() -> None:
    budget = BodyBudget(10)
    with budget.share() as first:
        await first.grow_to(8)
        gone = asyncio.create_task(budget.take(5))
        next_one = asyncio.create_task(budget.take(2))
        await asyncio.sleep(0)
        gone.cancel()
        await next_one
    assert budget.used == 2


async def test_whose_turn_comes_as_it_leaves_gives_it_back() -> None:
    budget = BodyBudget(10)
    with budget.share() as first:
        await first.grow_to(8)
        gone = asyncio.create_task(budget.take(5))
        await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert budget.used == 0


async def test_a_crowd_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_budget, "MAX_WAITING", 1)
    budget = BodyBudget(1)
    await budget.take(1)
    waiting = asyncio.create_task(budget.take(1))
    await asyncio.sleep(0)
    with pytest.raises(BudgetSpentError):
        await budget.take(1)
    waiting.cancel()


async def test_refusals_are_told_in_the_log_but_not_each() -> None:
    budget = BodyBudget(10)
    with capture_logs() as logs, budget.share() as share:
        await share.grow_to(10)
        for _ in range(3):
            with pytest.raises(BudgetSpentError):
                await budget.take(11)
    assert [(one["event"], one["count"], one["held"]) for one in logs] == [
        ("bodies.refused", 1, 10)
    ]
