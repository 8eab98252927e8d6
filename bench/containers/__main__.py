"""`python -m bench.containers`: what Modelyard costs on top of the engine's own work.

One engine, 16 containers at once. Through Modelyard a client sends each request over HTTP and waits
for its end; the bare loop makes the same calls to the engine as the worker, by aiodocker alone.
Rounds alternate between the two.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import aiodocker
import typer
import uvloop
from rich.console import Console

from bench.containers import image
from bench.containers.goals import cpu_ms, rows_of
from bench.containers.rounds import AT_ONCE, QUICK, Rounds, Sizes
from bench.profiling.option import ProfileOption, profiler_of, say_where
from bench.report import Checkout, Run, print_table, print_usage, write_results
from bench.stack import BenchStack
from deploy.local.errors import StackError
from deploy.local.layout import ROOT
from deploy.local.progress import Progress
from modelyard.client import AsyncModelyard

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.measuring import Section

RESULTS = ROOT / "bench" / "results-containers.json"


class ContainersStack(BenchStack):
    """A stack whose engine is given nothing but the smallest image."""

    def provide_images(self, note: Callable[[str], None]) -> str:
        """Import the image."""
        note(image.NOOP)
        image.provide(self.endpoints.docker_host)
        return f"Image {image.NOOP} ready"


def main(
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only try it: one short round, and no results file.")
    ] = False,
    profile: ProfileOption = False,
) -> None:
    """Compare TEMP, and CREATE + TERMINATE, with the same calls by aiodocker alone."""
    progress, checkout = Progress(), Checkout.now()
    sizes = QUICK if quick else Sizes()
    if profile:
        sizes = replace(sizes, rounds=1)
    try:
        profiler = profiler_of("bench-containers", progress, wanted=profile)
        with ContainersStack.started(progress, slots=AT_ONCE) as stack:
            stack.profiler = profiler
            sections = uvloop.run(_measure(stack, sizes, progress))
            versions = stack.versions()
    except StackError as error:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(str(error))
        raise SystemExit(1) from None
    print_usage(progress.console, "CPU, ms per piece of work", cpu_ms(sections))
    rows = rows_of(sections)
    print_table(progress.console, f"Containers, {AT_ONCE} at once", rows, checkout)
    say_where(profiler, progress)
    if not quick and not profile:
        figures = {"sections": [one.figures() for one in sections]}
        run = Run(checkout, "make bench-containers", versions, peers={})
        write_results(RESULTS, run, rows, figures)


async def _measure(stack: BenchStack, sizes: Sizes, progress: Progress) -> list[Section]:
    addresses = stack.endpoints
    async with (
        AsyncModelyard(addresses.url, api_key=stack.api_key) as client,
        aiodocker.Docker(url=addresses.docker_host) as docker,
    ):
        return await Rounds(stack, client, docker).run(sizes, progress)


if __name__ == "__main__":
    typer.run(main)
