"""Who of two dispatchers leads, and when, as processes and servers come and go."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from dispatcher.leadership import (
    LEADER_LEASE_S,
    MARGIN_S,
    POLL_S,
    RENEW_EVERY_S,
    Leadership,
    Term,
)
from dispatcher.service import BROKER_AWAY_S
from modelyard.store.leases import DISPATCHER
from tests.fakes.broker_links import Link
from tests.fakes.mongodb import MemoryDatabase
from tests.fakes.store import MemoryStore
from tests.statemachine.loop import VirtualLoop
from tests.statemachine.members import Member
from tests.statemachine.virtual import virtual_machine
from tests.statemachine.world import World

TAKEN_OVER_S = LEADER_LEASE_S + 2 * POLL_S
"""Seconds within which a standby leads after the leader was killed."""
AGAIN_S = 40.0
"""Longer than a server takes to be found after an outage."""


@dataclass
class Pair:
    """Two dispatchers, of which the first one led first; and what they logged."""

    world: World
    log: list[str]
    first: Member
    second: Member

    def leads(self, member: Member) -> bool:
        """Tell whether a dispatcher began the newest term, and has not noticed its end."""
        said = [line for line in self.log if f" {member.process.name} " in line]
        turns = [line for line in said if "dispatcher.leading" in line or "term_over" in line]
        return bool(turns) and "dispatcher.leading" in turns[-1]

    @property
    def consumers(self) -> dict[str, bool]:
        """Whether each has a consumer at the broker, by name."""
        queues = self.world.rabbit.queues.values()
        there = [one for queue in queues for one in queue.consumers]
        return {
            member.process.name: any(member.broker.has(one) for one in there)
            for member in (self.first, self.second)
        }

    @property
    def term(self) -> int:
        """The newest term."""
        (lease,) = self.world.database.documents("leases")
        return int(lease["term"])


@pytest.fixture
def pair() -> Iterator[Pair]:
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    with virtual_machine(loop, lambda _: None) as log:
        world = World(loop, seed=1)
        first = world.start_dispatcher()
        loop.advance(1.0)
        second = world.start_dispatcher()
        loop.advance(3.0)
        yield Pair(world, log, first, second)
        assert world.died == []
        loop.finish()
    asyncio.set_event_loop(None)


def test_one_leads_and_the_other_stands_by(pair: Pair) -> None:
    assert (pair.leads(pair.first), pair.leads(pair.second)) == (True, False)
    assert pair.consumers == {"d1": True, "d2": False}
    pair.world.loop.advance(600.0)
    assert pair.term == 1


def test_a_standby_leads_soon_after_the_leader_was_killed(pair: Pair) -> None:
    pair.world.kill(pair.first)
    pair.world.loop.advance(TAKEN_OVER_S)
    assert pair.leads(pair.second)
    assert pair.term == 2


def test_a_standby_leads_at_once_after_the_leader_was_stopped(pair: Pair) -> None:
    assert pair.first.task is not None
    pair.first.alive = False
    pair.first.task.cancel()
    pair.world.loop.advance(2 * POLL_S)
    assert pair.leads(pair.second)


def test_a_leader_that_thaws_after_its_lease_stands_by(pair: Pair) -> None:
    pair.world.freeze(pair.first)
    pair.world.loop.advance(TAKEN_OVER_S)
    assert pair.leads(pair.second)
    pair.world.thaw(pair.first)
    pair.world.loop.advance(1.0)
    assert not pair.leads(pair.first)
    assert pair.consumers == {"d1": False, "d2": True}
    pair.world.loop.advance(60.0)
    assert (pair.leads(pair.first), pair.leads(pair.second), pair.term) == (False, True, 2)


@pytest.mark.parametrize("seconds", [1.0, 3.0])
def test_a_short_outage_of_mongodb_changes_nothing(pair: Pair, seconds: float) -> None:
    pair.world.loop.advance(0.37)
    pair.world.set_store(up=False)
    pair.world.loop.advance(seconds)
    pair.world.set_store(up=True)
    pair.world.loop.advance(AGAIN_S)
    assert pair.term == 1


def test_while_mongodb_is_away_nobody_leads_and_then_one_does(pair: Pair) -> None:
    pair.world.set_store(up=False)
    pair.world.loop.advance(LEADER_LEASE_S)
    assert not pair.leads(pair.first)
    assert pair.consumers == {"d1": False, "d2": False}
    pair.world.loop.advance(60.0)
    pair.world.set_store(up=True)
    pair.world.loop.advance(AGAIN_S)
    assert pair.leads(pair.first) != pair.leads(pair.second)
    assert pair.term == 2


@pytest.mark.parametrize("how", ["cut", "silent"])
def test_a_leader_that_alone_is_cut_off_from_mongodb_is_replaced(pair: Pair, how: str) -> None:
    link = _store_link(pair.first)
    link.up, link.silent = how != "cut", how == "silent"
    pair.world.loop.advance(TAKEN_OVER_S)
    assert (pair.leads(pair.first), pair.leads(pair.second)) == (False, True)


def test_a_term_ends_before_the_lease_though_a_renewal_is_never_answered(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelyard.store.leases.CALL_S", 60.0)
    _store_link(pair.first).silent = True
    (lease,) = pair.world.database.documents("leases")
    left_s = (lease["expires_at"] - pair.world.database.now).total_seconds()
    pair.world.loop.advance(left_s - 0.1)
    assert not pair.leads(pair.first)
    assert not pair.consumers["d1"]


def test_a_term_counts_from_when_its_lease_was_asked_for(pair: Pair) -> None:
    slow_s = 0.6
    store = MemoryStore(MemoryDatabase(pair.world.loop.time))
    store.link.slow_s = slow_s
    left_s = list[float]()

    async def work(term: Term) -> None:
        left_s.append(term.left_s)
        term.end()
        term.check()

    pair.world.loop.run(Leadership(store.leases).lead(work))
    assert left_s == [pytest.approx(LEADER_LEASE_S - MARGIN_S - 2 * slow_s)]


def test_each_answer_of_the_database_shows_that_a_dispatcher_works(pair: Pair) -> None:
    store = MemoryStore(MemoryDatabase(pair.world.loop.time))
    answers = list[float]()

    def answered() -> None:
        answers.append(pair.world.loop.time())

    async def work(_term: Term) -> None:
        await asyncio.sleep(3 * RENEW_EVERY_S + 0.1)
        store.link.silent = True  # no answer, so no sign of life
        await asyncio.Event().wait()

    pair.world.loop.run(Leadership(store.leases, on_answer=answered).lead(work))
    began = answers[0]
    assert [pytest.approx(one - began) for one in answers] == [n * RENEW_EVERY_S for n in range(4)]


def test_a_leader_that_alone_is_cut_off_from_rabbitmq_is_replaced(pair: Pair) -> None:
    pair.world.cut(pair.first)
    pair.world.loop.advance(BROKER_AWAY_S + 4 * POLL_S)
    assert (pair.leads(pair.first), pair.leads(pair.second)) == (False, True)
    pair.world.join(pair.first)
    pair.world.loop.advance(AGAIN_S)
    assert (pair.leads(pair.first), pair.leads(pair.second), pair.term) == (False, True, 2)


def test_while_rabbitmq_is_away_for_all_nobody_takes_turns_at_leading(pair: Pair) -> None:
    pair.world.set_broker(up=False)
    pair.world.loop.advance(300.0)
    before = pair.term
    assert before <= 3
    pair.world.set_broker(up=True)
    pair.world.loop.advance(AGAIN_S)
    assert pair.leads(pair.first) != pair.leads(pair.second)
    assert pair.term == before + 1


def test_an_answer_that_was_lost_costs_a_term_and_nothing_else(pair: Pair) -> None:
    pair.world.kill(pair.first)
    _store_link(pair.second).fates.append("lost_after")
    pair.world.loop.advance(TAKEN_OVER_S + 1.0)
    assert pair.leads(pair.second)


def test_a_leader_whose_lease_another_has_stops_at_its_next_renewal(pair: Pair) -> None:
    """As after a jump of the database's clock: the lease ends early."""
    (lease,) = pair.world.database.documents("leases")
    pair.world.database.write("leases", {**lease, "holder": "another", "term": 2})
    pair.world.loop.advance(2.0)
    assert not pair.leads(pair.first)
    assert pair.world.database.documents("leases")[0]["_id"] == DISPATCHER


def _store_link(member: Member) -> Link:
    assert member.store is not None
    return member.store.link
