"""The median of the rounds' ratios is compared with the goal."""

import pytest

from bench.containers.goals import rows_of
from bench.containers.rounds import BARE, CREATE_WORK, MODELYARD, TEMP_WORK
from bench.measuring import Section


def sections(ours: list[float], bare: list[float]) -> list[Section]:
    """Return a section for each rate, of both kinds of work."""
    return [
        Section(
            system, what, operations=1, seconds=1 / rate, cpu_ms={}, rss_mib={"worker": 50 / rate}
        )
        for what in (TEMP_WORK, CREATE_WORK)
        for pair in zip(ours, bare, strict=True)
        for system, rate in zip((MODELYARD, BARE), pair, strict=True)
    ]


@pytest.mark.parametrize(("ours", "met"), [([1.0, 3.9, 3.9], True), ([3.6, 3.7, 9.9], False)])
def test_the_middle_round_decides(ours: list[float], *, met: bool) -> None:
    rows = rows_of(sections(ours, [4.0, 4.0, 4.0]))

    assert [row.met for row in rows] == [met, met, None]


def test_each_kind_of_work_has_a_row_with_its_rates() -> None:
    *rows, memory = rows_of(sections([3.5], [4.0]))

    assert [row.name for row in rows] == [TEMP_WORK, CREATE_WORK]
    assert memory.reached == "worker 14"
    assert rows[0].reached == "88 %: 3.50/s, alone 4.00/s"


def test_a_ratio_is_taken_within_its_round() -> None:
    [row, *_] = rows_of(sections([1.0, 8.0, 1.0], [2.0, 8.0, 2.0]))

    assert row.reached.startswith("50 (50-100) %")
