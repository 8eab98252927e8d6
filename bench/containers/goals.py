"""The goal for real containers, and how what was measured compares with it."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from bench.containers.rounds import BARE, CREATE_WORK, MODELYARD, TEMP_WORK
from bench.goals import row_of_memory
from bench.report import Row
from bench.statistics import with_spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.measuring import Section

AT_LEAST = 0.95
"""Modelyard's rate as a part of that of the bare loop."""


def rows_of(sections: Sequence[Section]) -> list[Row]:
    """Return the median of the rounds' ratios beside the goal, by kind of work, and the memory."""
    return [*(_row(what, sections) for what in (TEMP_WORK, CREATE_WORK)), row_of_memory(sections)]


def cpu_ms(sections: Sequence[Section]) -> dict[str, dict[str, float]]:
    """Return the median CPU milliseconds of each service for one piece, by kind of section.

    What ends within a section is left out: the processes in containers, and their shims.
    """
    kinds = dict.fromkeys((one.system, one.what) for one in sections)
    return {
        f"{what}, {system}": {
            name: median(one.cpu_ms.get(name, 0.0) for one in _of(sections, system, what))
            for name in sections[0].cpu_ms
        }
        for system, what in kinds
    }


def _of(sections: Sequence[Section], system: str, what: str) -> list[Section]:
    return [one for one in sections if (one.system, one.what) == (system, what)]


def _row(what: str, sections: Sequence[Section]) -> Row:
    ours, bare = ([one.rate for one in _of(sections, system, what)] for system in (MODELYARD, BARE))
    percents = [100 * one / other for one, other in zip(ours, bare, strict=True)]
    return Row(
        what,
        f"{with_spread(percents, ' %')}: {with_spread(ours, '/s', 2)}, "
        f"alone {with_spread(bare, '/s', 2)}",
        goal=f">= {AT_LEAST:.0%} of aiodocker alone",
        met=median(percents) >= 100 * AT_LEAST,
    )
