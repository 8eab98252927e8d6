"""What is measured at one site: throughput, latency, CPU and memory; and a takeover."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pymongo import MongoClient

from bench.processes import cpu_between, memory
from bench.scale.load import NotEndedError, infer
from bench.scale.site import SET_UP_S
from bench.statistics import percentile
from modelyard.store.leases import DISPATCHER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.scale.load import Throughput
    from bench.scale.site import Site

PACE_PER_S = 75.0
"""Operations a second at which fleets are compared.

On two processors 2,000 simulated hosts reach about 100 of them, each a message of its own.
"""
_OFF_AT_MOST = 0.05
"""By what share of the rate fewer operations may be sent or end, or more: what was late before."""
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Windows:
    """How long each part of a measurement takes, in seconds."""

    idle_s: float = 20.0
    """A multiple of the 10 s between two inventories of a host."""
    warm_up_s: float = 5.0
    busy_s: float = 15.0
    paced_s: float = 20.0
    """At the same rate for all fleets."""
    singles: int = 50
    """Operations that are run one at a time."""
    singles_s: float = 15.0
    """No further one begins after these seconds."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one dispatcher did under one load."""

    per_s: float
    """Operations that ended in a second, with `load.IN_FLIGHT` in flight."""
    cpu_ms: dict[str, float]
    """CPU milliseconds of each service per operation, all that it did meanwhile included."""
    rss_mib: dict[str, float]
    """Memory of each service at the end of the load."""
    p50_ms: float
    """Of operations that run one at a time."""
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Paced:
    """What one dispatcher did while operations came at a constant rate, each by itself."""

    submitted_per_s: float
    """Operations that were sent in a second, which should be `PACE_PER_S`."""
    per_s: float
    """Operations that ended in a second."""
    cpu_ms: dict[str, float]
    """CPU milliseconds of each service per operation, all that it did meanwhile included."""
    cpu_ms_less_idle: dict[str, float]
    """The same less what the service uses in that time without operations."""

    @property
    def at_rate(self) -> bool:
        """Whether about `PACE_PER_S` operations were sent in a second, and as many ended."""
        return all(
            abs(per_s - PACE_PER_S) <= _OFF_AT_MOST * PACE_PER_S
            for per_s in (self.submitted_per_s, self.per_s)
        )


@dataclass(frozen=True, slots=True)
class Takeover:
    """What happened after the leading dispatcher was killed. Seconds since the kill."""

    lease_ended_s: float
    """Until the end of its lease: nobody else may lead before."""
    first_command_s: float
    """Until the first command was at a host."""
    all_ended_s: float
    """Until one inference on each live job had ended; they were submitted right after the kill."""


async def measure_idle(site: Site, windows: Windows) -> dict[str, float]:
    """Return the CPU seconds of each service in a second without operations.

    Heartbeats and inventories still come.
    """
    before = site.usages()
    idle = await site.load.measured(windows.idle_s)
    used = cpu_between(before, site.usages())
    return {name: round(cpu / idle.seconds, 4) for name, cpu in used.items()}


async def measure(site: Site, jobs: Sequence[str], windows: Windows, name: str) -> Measurement:
    """Measure a dispatcher on loaded jobs, under load and with one operation at a time.

    `name` is what a profile of the load is called. Raises `NotEndedError`.
    """
    async with site.load.keep_busy(jobs):
        await site.load.measured(windows.warm_up_s)
        async with site.stack.sampling(name):
            before = site.usages()
            busy = await site.load.measured(windows.busy_s)
            after = site.usages()
    await site.load.drained(SET_UP_S)
    if not busy.operations:
        raise NotEndedError("No operation ended under load.")
    took = await site.load.one_at_a_time(jobs, windows.singles, windows.singles_s)
    used = cpu_between(before, after)
    return Measurement(
        per_s=round(busy.per_s, 1),
        cpu_ms={name: round(1_000 * cpu / busy.operations, 3) for name, cpu in used.items()},
        rss_mib={name: round(size / _MIB, 1) for name, size in memory(after).items()},
        p50_ms=round(1_000 * statistics.median(took), 1),
        p99_ms=round(1_000 * percentile(took, 99), 1),
    )


async def measure_paced(
    site: Site, jobs: Sequence[str], windows: Windows, idle_cpu: Mapping[str, float]
) -> Paced:
    """Measure a dispatcher at a rate that is the same for every fleet.

    `idle_cpu` has the CPU seconds of each service in a second without operations. Raises
    `NotEndedError`.
    """
    name = f"{site.fleet.plan.hosts} hosts, same rate"
    async with site.load.keep_rate(jobs, PACE_PER_S):
        await site.load.measured(windows.warm_up_s)
        async with site.stack.sampling(name):
            before = site.usages()
            done = await site.load.measured(windows.paced_s)
            used = cpu_between(before, site.usages())
    await site.load.drained(SET_UP_S)
    return paced(done, used, idle_cpu)


def paced(done: Throughput, used: Mapping[str, float], idle_cpu: Mapping[str, float]) -> Paced:
    """Divide CPU seconds by operations; raises `NotEndedError` if there are none."""
    if not done.operations:
        raise NotEndedError("No operation ended at a constant rate.")

    def each_ms(cpu_s: float) -> float:
        return round(1_000 * cpu_s / done.operations, 3)

    return Paced(
        submitted_per_s=round(done.submitted / done.seconds, 1),
        per_s=round(done.per_s, 1),
        cpu_ms={name: each_ms(cpu_s) for name, cpu_s in used.items()},
        cpu_ms_less_idle={
            name: each_ms(cpu_s - idle_cpu.get(name, 0.0) * done.seconds)
            for name, cpu_s in used.items()
        },
    )


async def measure_takeover(site: Site, active: str, jobs: Sequence[str]) -> Takeover:
    """Kill the leading dispatcher, which has nothing to do, and submit an inference on each job.

    Every command that comes then is another dispatcher's. Raises `NotEndedError`.
    """
    first_command, killed_at = site.fleet.gauges.first_command, time.monotonic()
    site.stack.dispatchers[active].kill()
    first_command.value = 0.0
    lease_ended_s = await asyncio.to_thread(_lease_left_s, site.stack.mongodb.url)
    await site.load.run_all([infer(job_id) for job_id in jobs], SET_UP_S)
    return Takeover(
        lease_ended_s=round(lease_ended_s, 2),
        first_command_s=round(first_command.value - killed_at, 2),
        all_ended_s=round(time.monotonic() - killed_at, 2),
    )


def _lease_left_s(url: str) -> float:
    """Return the seconds until the lease ends; the database's clock is that of this machine."""
    with MongoClient[dict[str, Any]](url, tz_aware=True) as client:
        lease = client.get_default_database()["leases"].find_one({"_id": DISPATCHER})
    ends_at: datetime = lease["expires_at"] if lease else datetime.now(UTC)
    return (ends_at - datetime.now(UTC)).total_seconds()
