"""The goals for scale, and how what was measured compares with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.report import Row
from bench.scale.stack import ACTIVE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.scale.measure import Measurement, Takeover

COST_AT_MOST = 1.2
SLOWER_AT_MOST = 1.2
MEMORY_AT_MOST = 1.5
TAKEOVER_AT_MOST_S = 5.0


def rows_of_hosts(
    by_hosts: Mapping[int, Measurement], idle_cpu: Mapping[int, Mapping[str, float]]
) -> list[Row]:
    """Compare the largest fleet with the smallest one."""
    rows = [
        Row(
            f"{hosts:,} hosts",
            f"{one.cpu_ms[ACTIVE]:.2f} ms of dispatcher CPU an operation, {one.per_s:.0f}/s, "
            f"p50 {one.p50_ms:.0f} ms; idle {100 * idle_cpu[hosts][ACTIVE]:.0f} % of a CPU",
        )
        for hosts, one in by_hosts.items()
    ]
    few, many = min(by_hosts, default=0), max(by_hosts, default=0)
    if few != many:
        cost = by_hosts[many].cpu_ms[ACTIVE] / by_hosts[few].cpu_ms[ACTIVE]
        rows.append(_at_most(f"{few:,} -> {many:,} hosts: cost per operation", cost, COST_AT_MOST))
    return rows


def rows_of_waiting(by_waiting: Mapping[int, Measurement]) -> list[Row]:
    """Compare the fullest waiting room with the emptiest one."""
    rows = [
        Row(
            f"{waiting:,} waiting",
            f"{one.per_s:.0f} operations/s, p50 {one.p50_ms:.0f} ms, "
            f"dispatcher {one.rss_mib[ACTIVE]:.0f} MiB",
        )
        for waiting, one in by_waiting.items()
    ]
    few, many = min(by_waiting, default=0), max(by_waiting, default=0)
    if few != many:
        less, more, name = by_waiting[few], by_waiting[many], f"{few:,} -> {many:,} waiting"
        rows += [
            _at_most(f"{name}: throughput", less.per_s / more.per_s, SLOWER_AT_MOST),
            _at_most(f"{name}: latency, p50", more.p50_ms / less.p50_ms, SLOWER_AT_MOST),
            _at_most(
                f"{name}: dispatcher memory",
                more.rss_mib[ACTIVE] / less.rss_mib[ACTIVE],
                MEMORY_AT_MOST,
            ),
        ]
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


def _at_most(name: str, reached: float, most: float) -> Row:
    return Row(name, f"{reached:.2f}x", goal=f"<= {most:.1f}x", met=reached <= most)
