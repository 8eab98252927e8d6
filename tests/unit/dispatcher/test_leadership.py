"""The arithmetic of a term: it is over before the lease can end."""

import pytest

from dispatcher.leadership import LEADER_LEASE_S, MARGIN_S, RENEW_EVERY_S, NotLeadingError, Term

ACQUIRED_AT = 100.0
LASTS_S = LEADER_LEASE_S - MARGIN_S


class Clock:
    """Shows the time that a test sets."""

    def __init__(self) -> None:
        self.now = ACQUIRED_AT

    def __call__(self) -> float:
        return self.now


def term_on(clock: Clock) -> Term:
    return Term(7, ACQUIRED_AT, clock=clock)


def test_a_term_counts_from_before_the_call_and_ends_before_the_lease() -> None:
    clock = Clock()
    term = term_on(clock)
    clock.now += 3.0  # the answer took so long
    assert term.left_s == pytest.approx(LASTS_S - 3.0)
    clock.now = ACQUIRED_AT + LASTS_S - 0.01
    term.check()
    clock.now = ACQUIRED_AT + LASTS_S
    with pytest.raises(NotLeadingError, match="Term 7"):
        term.check()


def test_a_renewal_counts_from_when_it_was_sent() -> None:
    clock = Clock()
    term = term_on(clock)
    clock.now += RENEW_EVERY_S + 1.0
    term.renewed(ACQUIRED_AT + RENEW_EVERY_S)
    assert term.left_s == pytest.approx(LASTS_S - 1.0)


def test_a_renewal_that_was_overtaken_shortens_nothing() -> None:
    clock = Clock()
    term = term_on(clock)
    term.renewed(ACQUIRED_AT - 1.0)
    assert term.left_s == pytest.approx(LASTS_S)


def test_a_term_that_is_over_stays_over() -> None:
    clock = Clock()
    frozen, ended = term_on(clock), term_on(clock)
    ended.end()
    ended.renewed(clock.now)
    clock.now += LASTS_S
    frozen.renewed(clock.now)  # it was confirmed to one who thawed too late
    for term in (frozen, ended):
        with pytest.raises(NotLeadingError):
            term.check()


def test_an_outage_of_some_seconds_ends_no_term() -> None:
    assert LASTS_S - RENEW_EVERY_S >= 3.0
