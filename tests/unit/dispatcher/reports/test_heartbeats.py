"""Incarnations that send heartbeats and are not recorded."""

import time

from dispatcher.reports.heartbeats import (
    KEPT_S,
    MOST_BOOTS,
    MOST_HOSTS,
    STRANGER_S,
    UnrecordedBoots,
)
from modelyard.contract.messages import Heartbeat


def beat(incarnation: str, host_id: str = "h") -> Heartbeat:
    return Heartbeat(host_id=host_id, incarnation=incarnation)


def test_an_incarnation_is_overdue_once_it_was_unrecorded_for_too_long() -> None:
    boots, one = UnrecordedBoots(), beat("a")
    assert boots.overdue([one], {}, 0.0) == []
    assert boots.overdue([one], {}, STRANGER_S) == [one]
    assert boots.overdue([one], {"h": "a"}, STRANGER_S) == []
    assert boots.overdue([one], {}, STRANGER_S) == []


def test_an_incarnation_that_was_silent_for_long_has_its_time_again() -> None:
    boots, one = UnrecordedBoots(), beat("a")
    boots.overdue([one], {}, 0.0)
    assert boots.overdue([one], {}, KEPT_S) == []
    assert boots.overdue([one], {}, KEPT_S + STRANGER_S) == [one]


def test_two_unrecorded_workers_of_a_host_do_not_hide_each_other() -> None:
    boots = UnrecordedBoots()
    for at in range(int(STRANGER_S)):
        assert boots.overdue([beat("a"), beat("b")], {}, float(at)) == []
    assert boots.overdue([beat("a"), beat("b")], {}, STRANGER_S) == [beat("a"), beat("b")]


def test_who_was_told_to_begin_again_has_its_time_again() -> None:
    boots, one = UnrecordedBoots(), beat("a")
    boots.overdue([one], {}, 0.0)
    boots.forget(one)
    boots.forget(beat("never-heard-of"))
    assert boots.overdue([one], {}, STRANGER_S) == []


def test_however_many_incarnations_a_worker_makes_up_few_are_kept() -> None:
    boots = UnrecordedBoots()
    for number in range(1_000):
        boots.overdue([beat(f"made-up-{number}")], {}, 0.0)
    assert [*boots._since["h"]] == [f"made-up-{n}" for n in range(1_000 - MOST_BOOTS, 1_000)]


def test_however_many_hosts_are_made_up_a_bounded_number_is_kept() -> None:
    boots = UnrecordedBoots()
    boots.overdue((beat("a", f"h-{number}") for number in range(MOST_HOSTS + 5)), {}, 0.0)
    assert len(boots._since) == MOST_HOSTS
    assert "h-4" not in boots._since
    last = beat("a", f"h-{MOST_HOSTS + 4}")
    assert boots.overdue([last], {}, STRANGER_S) == [last]


def test_a_recorded_heartbeat_costs_the_same_beside_any_number_of_strangers() -> None:
    """CPU time of the thread: when each looked at all strangers, it took 1.2 s."""
    boots = UnrecordedBoots()
    boots.overdue((beat("a", f"stranger-{number}") for number in range(MOST_HOSTS)), {}, 0.0)
    own = [beat("a", f"own-{number}") for number in range(1_000)]
    recorded = {one.host_id: "a" for one in own}
    began = time.thread_time()
    assert boots.overdue(own, recorded, 1.0) == []
    assert time.thread_time() - began < 0.2
