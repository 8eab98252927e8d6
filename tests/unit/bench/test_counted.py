"""The goal that a test counts stands in the table, whatever becomes of that test."""

import sys

import pytest

from bench.counted import FILE, TEST, row_of_waits
from tests.statemachine import test_one_inference
from tests.statemachine.test_one_inference import DURABLE_WAITS_IN_SERIES, READS_IN_SERIES

BOUNDS = f"{DURABLE_WAITS_IN_SERIES} / {READS_IN_SERIES}"


def test_the_test_that_counts_exists() -> None:
    assert hasattr(test_one_inference, TEST)
    assert str(test_one_inference.__file__).endswith(FILE)


@pytest.mark.parametrize(
    ("code", "met", "reached"),
    [
        ("", True, f"at most {BOUNDS}, counted by {FILE}"),
        ("exit(1)", False, f"more than {BOUNDS}, or not counted: {FILE} fails"),
        ("print('no tests ran'); exit(5)", False, f"not counted: pytest {FILE} exited with 5"),
        ("print('rootdir: /home/me'); exit(4)", False, f"not counted: pytest {FILE} exited with 4"),
    ],
)
def test_the_row_says_what_the_test_says(code: str, reached: str, *, met: bool) -> None:
    row = row_of_waits((sys.executable, "-c", code))

    assert (row.goal, row.reached, row.met) == (f"<= {BOUNDS}", reached, met)
