"""Hypothesis drives the whole core over ports in memory: dispatchers, workers, fake engines."""

import time

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.statemachine.machine import Fleet

STEPS_EACH = 100
EXAMPLES, FAST_EXAMPLES = 120, 6
LEAST_STEPS = 10_000


@pytest.mark.timeout(36_000)
def test_the_invariants_hold_whatever_happens_to_the_fleet(request: pytest.FixtureRequest) -> None:
    """Always the same examples, a tenth of them with `--fast`.

    With `--machine-examples N`, it is N others each time.
    """
    wanted: int | None = request.config.getoption("--machine-examples")
    fixed = FAST_EXAMPLES if request.config.getoption("--fast") else EXAMPLES
    Fleet.steps, Fleet.ends = 0, {}
    began = time.monotonic()
    run_state_machine_as_test(
        Fleet,
        settings=settings(
            max_examples=wanted or fixed,
            stateful_step_count=STEPS_EACH,
            derandomize=wanted is None,
            deadline=None,
            database=None,
            print_blob=False,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
    ends = [f"{count:6} {what}" for what, count in sorted(Fleet.ends.items())]
    took_s = time.monotonic() - began
    print("\n".join([*ends, f"{Fleet.steps} steps in {took_s:.0f} s"]))  # noqa: T201 - asked for
    assert wanted is not None or Fleet.steps >= LEAST_STEPS * fixed / EXAMPLES
