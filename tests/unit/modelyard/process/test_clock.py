"""Another machine's clock, as far as answers have told it."""

from datetime import UTC, datetime, timedelta

import pytest

from modelyard.process.clock import DRIFT, RemoteClock

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Machine:
    """This machine's clock, and another one's that is `ahead_s` before it."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.ahead_s = 0.0
        self.remote = RemoteClock(clock=lambda: self.now_s)

    @property
    def truth(self) -> datetime:
        return NOON + timedelta(seconds=self.now_s + self.ahead_s)

    @property
    def error_s(self) -> float:
        return (self.remote.now() - self.truth).total_seconds()

    def ask(self, there_s: float, back_s: float) -> None:
        """Ask; question and answer take so long."""
        asked_at = self.now_s
        self.now_s += there_s
        shown = self.truth
        self.now_s += back_s
        self.remote.hear(shown, asked_at=asked_at, answered_at=self.now_s)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_a_clock_is_unknown_before_the_first_answer(machine: Machine) -> None:
    assert machine.remote.age_s == float("inf")
    with pytest.raises(LookupError):
        machine.remote.now()


@pytest.mark.parametrize("there_s", [0.0, 0.05, 0.1])
def test_it_is_wrong_by_half_of_what_the_answer_took(machine: Machine, there_s: float) -> None:
    machine.ask(there_s, 0.1 - there_s)
    machine.now_s += 5
    assert abs(machine.error_s) <= 0.0501 + 0.001
    assert machine.remote.age_s == 5


def test_a_slow_answer_does_not_replace_a_quick_one(machine: Machine) -> None:
    machine.ask(0.0005, 0.0005)
    for _ in range(20):
        machine.now_s += 10
        machine.ask(0.0, 0.4)
    assert abs(machine.error_s) <= 0.002


def test_drift_is_made_up_for(machine: Machine) -> None:
    machine.ask(0.0005, 0.0005)
    for _ in range(100):
        machine.now_s += 10
        machine.ahead_s += 10 * DRIFT
        machine.ask(0.0005, 0.0005)
    assert abs(machine.error_s) <= 0.003


@pytest.mark.parametrize("by_s", [3600.0, -3600.0])
def test_a_clock_that_was_set_is_followed(machine: Machine, by_s: float) -> None:
    machine.ask(0.0005, 0.0005)
    machine.remote.now()
    machine.ahead_s += by_s
    machine.ask(0.0, 0.4)
    assert abs(machine.error_s) <= 0.201


def test_it_does_not_go_back_when_it_is_corrected(machine: Machine) -> None:
    machine.ask(0.0, 0.4)  # 0.2 s behind
    machine.ask(0.4, 0.0)  # 0.2 s ahead, and as certain
    shown = [machine.remote.now()]
    for _ in range(3):
        machine.ask(0.0005, 0.0005)
        shown.append(machine.remote.now())
    assert shown == sorted(shown)
