"""Percentiles and spreads."""

import pytest

from bench.statistics import percentile, with_spread


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1), (1, 1), (50, 50), (99, 99), (99.5, 100), (100, 100)]
)
def test_a_percentile_is_a_value_that_was_measured(percent: float, expected: int) -> None:
    assert percentile(range(100, 0, -1), percent) == expected


def test_of_one_value_every_percentile_is_that_value() -> None:
    assert percentile([7.0], 50) == percentile([7.0], 99) == 7.0


def test_several_values_are_shown_with_their_spread() -> None:
    assert with_spread([242.0, 260.0, 250.4], "/s") == "250 (242-260)/s"
    assert with_spread([0.512], "x", digits=2) == "0.51x"
    assert with_spread([12_345.6], "/s") == "12,346/s"
