"""Incarnations that send heartbeats and are not recorded."""

from dispatcher.reports.heartbeats import KEPT_S, STRANGER_S, UnrecordedBoots
from modelyard.contract.messages import Heartbeat


def beat(incarnation: str) -> Heartbeat:
    return Heartbeat(host_id="h", incarnation=incarnation)


def test_an_incarnation_is_overdue_once_it_was_unrecorded_for_too_long() -> None:
    boots, one = UnrecordedBoots(), beat("a")
    assert boots.overdue([one], {}, 0.0) == []
    assert boots.overdue([one], {}, STRANGER_S) == [one]
    assert boots.overdue([one], {"h": "a"}, STRANGER_S) == []
    assert boots.overdue([one], {}, STRANGER_S) == []


def test_what_is_not_heard_of_any_more_is_forgotten() -> None:
    boots = UnrecordedBoots()
    boots.overdue([beat("a")], {}, 0.0)
    boots.overdue([beat("b")], {}, KEPT_S)
    assert [incarnation for _, incarnation in boots._since] == ["b"]
