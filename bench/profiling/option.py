"""The option `--profile` of the benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bench.profiling.profiler import Profiler
from deploy.local.layout import ROOT

if TYPE_CHECKING:
    from deploy.local.progress import Progress

ProfileOption = Annotated[
    bool,
    typer.Option(
        "--profile",
        help="Sample Modelyard's processes too, which slows them down: at most one round, and no "
        "results file, but a table for each process and load in var/profile.",
    ),
]


def profiler_of(benchmark: str, progress: Progress, *, wanted: bool) -> Profiler | None:
    """Return a profiler if it is wanted; raises `StackError` if py-spy is missing."""
    return Profiler.of(benchmark, progress.say) if wanted else None


def say_where(profiler: Profiler | None, progress: Progress) -> None:
    """Say where the tables are, and how many."""
    if profiler:
        count = len(list(profiler.folder.glob("*.txt")))
        progress.say(f"{count} profiles are in {profiler.folder.relative_to(ROOT)}.")
