"""The goals for scale, and how what was measured compares with them.

The smallest size is compared with whichever of the larger ones is worst.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from bench.report import Row
from bench.scale.measure import PACE_PER_S
from bench.scale.stack import ACTIVE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bench.scale.measure import Measurement, Paced, Takeover

COST_AT_MOST = 1.2
SLOWER_AT_MOST = 1.2
MEMORY_AT_MOST = 1.5
TAKEOVER_AT_MOST_S = 5.0

T = TypeVar("T")


def rows_of_hosts(
    by_hosts: Mapping[int, Measurement], idle_cpu: Mapping[int, Mapping[str, float]]
) -> list[Row]:
    """Show what each fleet reaches under load."""
    return [
        Row(
            f"{hosts:,} hosts",
            f"{one.cpu_ms[ACTIVE]:.2f} ms of dispatcher CPU an operation, {one.per_s:.0f}/s, "
            f"p50 {one.p50_ms:.0f} ms; idle {100 * idle_cpu[hosts][ACTIVE]:.0f} % of a CPU",
        )
        for hosts, one in by_hosts.items()
    ]


def rows_at_same_rate(paced: Mapping[int, Paced]) -> list[Row]:
    """Show what an operation costs on each fleet at the same rate."""
    return [
        Row(
            f"{hosts:,} hosts at {PACE_PER_S:.0f}/s",
            f"{one.cpu_ms[ACTIVE]:.2f} ms of dispatcher CPU an operation, "
            f"{one.cpu_ms_less_idle[ACTIVE]:.2f} without the idle cost; "
            f"{one.submitted_per_s:.0f}/s sent, {one.per_s:.0f}/s ended",
        )
        for hosts, one in paced.items()
    ]


def rows_of_costs(paced: Mapping[int, Paced], by_hosts: Mapping[int, Measurement]) -> list[Row]:
    """Compare the larger fleets with the smallest one.

    The goal is held against all that an operation costs at the same rate, and is not met if a fleet
    was not at that rate. The other comparisons have no goal.
    """
    rows = []
    if len(paced) > 1:
        name = f"{_range(paced)} hosts: cost per operation"
        others = [f"{hosts:,}" for hosts, one in paced.items() if not one.at_rate]
        held = _at_most(f"{name}, same rate", paced, lambda one: one.cpu_ms[ACTIVE], COST_AT_MOST)
        if others:
            reached = f"{held.reached}; not at this rate: {', '.join(others)}"
            held = replace(held, reached=reached, met=False)
        rows += [
            held,
            _beside("... without the idle cost", paced, lambda one: one.cpu_ms_less_idle[ACTIVE]),
        ]
    if len(by_hosts) > 1:
        name = "... at the rate that each fleet reaches"
        rows.append(_beside(name, by_hosts, lambda one: one.cpu_ms[ACTIVE]))
    return rows


def rows_of_waiting(by_waiting: Mapping[int, Measurement]) -> list[Row]:
    """Compare the fuller waiting rooms with the emptiest one."""
    rows = [
        Row(
            f"{waiting:,} waiting",
            f"{one.per_s:.0f} operations/s, p50 {one.p50_ms:.0f} ms, "
            f"dispatcher {one.rss_mib[ACTIVE]:.0f} MiB",
        )
        for waiting, one in by_waiting.items()
    ]
    if len(by_waiting) > 1:
        name = f"{_range(by_waiting)} waiting"
        costs: tuple[tuple[str, Callable[[Measurement], float], float], ...] = (
            ("throughput", lambda one: 1 / one.per_s, SLOWER_AT_MOST),
            ("latency, p50", lambda one: one.p50_ms, SLOWER_AT_MOST),
            ("dispatcher memory", lambda one: one.rss_mib[ACTIVE], MEMORY_AT_MOST),
        )
        rows += [_at_most(f"{name}: {what}", by_waiting, cost, most) for what, cost, most in costs]
    return rows


def rows_of_takeovers(waiting: int, jobs: int, takeovers: Sequence[Takeover]) -> list[Row]:
    """Compare the slowest takeover with the goal, which counts from the end of the lease."""
    if not takeovers:
        return []
    first = [one.first_command_s - one.lease_ended_s for one in takeovers]
    return [
        Row(
            f"takeover, {waiting:,} waiting, {jobs:,} live jobs: end of lease to first command",
            ", ".join(f"{seconds:.1f}" for seconds in first) + " s",
            goal=f"<= {TAKEOVER_AT_MOST_S:.0f} s",
            met=max(first) <= TAKEOVER_AT_MOST_S,
        ),
        Row(
            "... kill -9 to first command",
            ", ".join(f"{one.first_command_s:.1f}" for one in takeovers) + " s",
        ),
        Row(
            "... kill -9 to an inference on every live job",
            ", ".join(f"{one.all_ended_s:.1f}" for one in takeovers) + " s",
        ),
    ]


def _at_most(name: str, by_size: Mapping[int, T], cost: Callable[[T], float], most: float) -> Row:
    reached, times = _worst(by_size, cost)
    return Row(name, reached, goal=f"<= {most:.1f}x", met=times <= most)


def _beside(name: str, by_size: Mapping[int, T], cost: Callable[[T], float]) -> Row:
    reached, _ = _worst(by_size, cost)
    return Row(name, reached)


def _worst(by_size: Mapping[int, T], cost: Callable[[T], float]) -> tuple[str, float]:
    """Say which size but the smallest costs most, and return how many times the smallest's cost.

    There are two sizes or more. Where the smallest costs nothing, they can't be compared.
    """
    smallest = min(by_size)
    costs = {size: cost(one) for size, one in by_size.items() if size != smallest}
    size = max(costs, key=costs.__getitem__)
    base = cost(by_size[smallest])
    if base <= 0:
        return "not comparable", math.inf
    times = costs[size] / base
    return f"{times:.2f}x at {size:,}", times


def _range(sizes: Mapping[int, object]) -> str:
    return f"{min(sizes):,} -> {max(sizes):,}"
