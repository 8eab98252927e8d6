"""When models were used last, and how often."""

import pytest

from dispatcher.scheduling import usage as module
from dispatcher.scheduling.usage import HALF_LIFE_S, Usage


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_what_is_not_known_is_neither_idle_nor_used(clock: Clock) -> None:
    usage = Usage(clock=clock)
    assert usage.idle_s("j") is None
    assert usage.rate("j") == 0.0


def test_time_since_the_last_use(clock: Clock) -> None:
    usage = Usage(clock=clock)
    usage.note("j", ago_s=5.0)
    assert usage.idle_s("j") == 5.0
    clock.now += 2.0
    assert usage.idle_s("j") == 7.0
    usage.note("j")
    assert usage.idle_s("j") == 0.0
    usage.note("j", ago_s=60.0)
    assert usage.idle_s("j") == 0.0, "an earlier use is no later one"


def test_a_model_that_is_used_steadily_has_that_rate(clock: Clock) -> None:
    usage = Usage(clock=clock)
    for _ in range(20_000):
        clock.now += 2.0
        usage.note("j")
    assert usage.rate("j") == pytest.approx(0.5, rel=0.01)
    clock.now += HALF_LIFE_S
    assert usage.rate("j") == pytest.approx(0.25, rel=0.01)


def test_it_remembers_a_bounded_number_of_jobs(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_JOBS", 3)
    usage = Usage(clock=clock)
    for number in range(5):
        usage.note(f"j{number}")
    usage.note("j2")
    usage.note("j9")
    assert [usage.idle_s(f"j{n}") for n in (1, 2, 3, 4, 9)] == [None, 0.0, None, 0.0, 0.0]
