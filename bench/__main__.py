"""`python -m bench`: Modelyard and its peers on the same servers, in interleaved rounds."""

from dataclasses import replace
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from bench.counted import row_of_waits
from bench.goals import rows
from bench.profiling.option import ProfileOption, profiler_of, say_where
from bench.report import Checkout, Run, peer_versions, print_table, print_usage, write_results
from bench.rounds import FULL, JOBS, QUICK, measure
from bench.stack import BenchStack
from deploy.local.errors import StackError
from deploy.local.layout import ROOT
from deploy.local.progress import Progress

RESULTS = ROOT / "bench" / "results.json"
_LEAST_WIDTH = 120


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only try it: short rounds, and no results.json.")
    ] = False,
    profile: ProfileOption = False,
) -> None:
    """Measure Modelyard, Taskiq and Celery, and print the goals beside what was reached."""
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, _LEAST_WIDTH)
    progress, checkout = Progress(console), Checkout.now()
    with progress.step("What one inference waits for, by the test that counts it"):
        counted = row_of_waits()
    sizes = QUICK if quick else FULL
    if profile:
        sizes = replace(sizes, rounds=1)
    try:
        profiler = profiler_of("bench", progress, wanted=profile)
        with BenchStack.started(progress, slots=JOBS) as stack:
            stack.profiler = profiler
            measured = uvloop.run(measure(stack, sizes, progress))
            versions = stack.versions()
    except StackError as error:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(str(error))
        raise SystemExit(1) from None
    table = [*rows(measured), counted]
    print_usage(console, "CPU, ms per operation", measured.cpu_ms())
    print_table(console, "Modelyard and its peers", table, checkout)
    say_where(profiler, progress)
    if not quick and not profile:
        run = Run(checkout, "make bench", versions, peer_versions())
        write_results(RESULTS, run, table, measured.figures())


if __name__ == "__main__":
    app()
