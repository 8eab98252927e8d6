"""`python -m bench.scale`: how the dispatcher's work grows with hosts and with what waits.

Each fleet of simulated hosts has servers of its own, empty at the start, and the same number of
loaded jobs. On one fleet more and more operations wait; for each number of them the dispatcher is
started anew, so that whatever it keeps of them in memory it has read from the record. On another
fleet the leading dispatcher is killed while another one stands by. The goal of that counts from the
end of the dead one's lease.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from bench.profiling.option import ProfileOption, profiler_of, say_where
from bench.report import Checkout, Row, Run, print_table, write_results
from bench.scale.goals import (
    rows_at_same_rate,
    rows_of_costs,
    rows_of_hosts,
    rows_of_takeovers,
    rows_of_waiting,
)
from bench.scale.measure import Windows
from bench.scale.runs import HOSTS, WAITING, WAITING_AT_TAKEOVER, ScaleBench, Sizes
from deploy.local.errors import StackError
from deploy.local.layout import ROOT
from deploy.local.progress import Progress

if TYPE_CHECKING:
    from bench.scale.runs import Findings

RESULTS = ROOT / "bench" / "results-scale.json"
QUICK = Windows(idle_s=3.0, warm_up_s=3.0, busy_s=5.0, paced_s=5.0, singles=10, singles_s=5.0)

JobsOption = Annotated[int, typer.Option(help="Loaded jobs on each fleet.")]
HostsOption = Annotated[int, typer.Option(help=f"Largest fleet; the sizes are {HOSTS}.")]
WaitingOption = Annotated[int, typer.Option(help=f"Most that wait; the numbers are {WAITING}.")]
TakeoversOption = Annotated[int, typer.Option(help="How often the active dispatcher is killed.")]
QuickOption = Annotated[
    bool, typer.Option("--quick", help="Only try it: short measurements, and no results file.")
]


def main(
    *,
    jobs: JobsOption = 2_000,
    most_hosts: HostsOption = HOSTS[-1],
    most_waiting: WaitingOption = WAITING[-1],
    takeovers: TakeoversOption = 3,
    quick: QuickOption = False,
    profile: ProfileOption = False,
) -> None:
    """Measure the dispatcher with many simulated hosts and with many waiting operations."""
    progress, checkout = Progress(), Checkout.now()
    sizes = Sizes(jobs, most_hosts, most_waiting, takeovers)
    try:
        profiler = profiler_of("bench-scale", progress, wanted=profile)
        bench = ScaleBench(sizes, QUICK if quick else Windows(), progress, profiler)
        asyncio.run(bench.run())
    except StackError as error:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(str(error))
        raise SystemExit(1) from None
    rows = rows_of(bench.findings, sizes)
    print_table(progress.console, "Scale", rows, checkout)
    say_where(profiler, progress)
    if not quick and not profile:
        options = shlex.join(sys.argv[1:])
        command = f"make bench-scale ARGS='{options}'" if options else "make bench-scale"
        run = Run(checkout, command, servers=bench.findings.servers, peers={})
        write_results(RESULTS, run, rows, asdict(bench.findings))


def rows_of(findings: Findings, sizes: Sizes) -> list[Row]:
    """Return the table: what was reached beside the goals, and what could not be measured."""
    at_takeover = min(WAITING_AT_TAKEOVER, sizes.most_waiting)
    return [
        *rows_of_hosts(findings.hosts, findings.idle_cpu),
        *rows_at_same_rate(findings.paced),
        *rows_of_costs(findings.paced, findings.hosts),
        *rows_of_waiting(findings.waiting),
        *rows_of_takeovers(at_takeover, sizes.jobs, findings.takeovers),
        *(
            Row(name, f"not measured: {reason}", met=False)
            for name, reason in findings.failures.items()
        ),
    ]


if __name__ == "__main__":
    typer.run(main)
