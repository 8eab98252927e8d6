"""The course of `make bench-scale`: one fleet after the other; on some, more is measured."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from bench.scale.load import NotEndedError
from bench.scale.measure import (
    Measurement,
    Paced,
    Takeover,
    Windows,
    measure,
    measure_idle,
    measure_paced,
    measure_takeover,
)
from bench.scale.site import SET_UP_S, opened_site
from bench.scale.stack import ACTIVE, STANDBY
from bench.scale.waiting_room import LINES, WaitingRoom
from modelyard.contract.errors import ModelyardError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from bench.profiling.profiler import Profiler
    from bench.scale.site import Site
    from deploy.local.progress import Progress

HOSTS = (10, 200, 2_000)
WAITING = (1_000, 10_000, 100_000, 1_000_000)
HOSTS_OF_WAITING, HOSTS_OF_TAKEOVER = 10, 200
WAITING_AT_TAKEOVER = 100_000


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the run is."""

    jobs: int
    most_hosts: int
    most_waiting: int
    takeovers: int

    @property
    def hosts(self) -> list[int]:
        """The sizes of the fleets."""
        return [size for size in HOSTS if size <= self.most_hosts]

    @property
    def waiting(self) -> list[int]:
        """The numbers of waiting operations."""
        return [size for size in WAITING if size <= self.most_waiting]


@dataclass(slots=True)
class Findings:
    """All that was measured."""

    hosts: dict[int, Measurement] = field(default_factory=dict)
    idle_cpu: dict[int, dict[str, float]] = field(default_factory=dict)
    """By hosts, of each service: CPU seconds a second without operations."""
    paced: dict[int, Paced] = field(default_factory=dict)
    """By hosts: at the same constant rate."""
    waiting: dict[int, Measurement] = field(default_factory=dict)
    takeovers: list[Takeover] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    """By part: why it could not be measured."""
    servers: dict[str, str] = field(default_factory=dict)


class ScaleBench:
    """Measures one fleet after the other; a part that fails does not keep the next from running."""

    def __init__(
        self,
        sizes: Sizes,
        windows: Windows,
        progress: Progress,
        profiler: Profiler | None = None,
    ) -> None:
        self._profiler = profiler
        self._sizes = sizes
        self._windows = windows
        self._progress = progress
        self._jobs = [f"job-{number:05}" for number in range(sizes.jobs)]
        self.findings = Findings()

    async def run(self) -> None:
        """Measure everything."""
        for hosts in self._sizes.hosts:
            await self._part(f"{hosts:,} hosts", partial(self._fleet, hosts))

    async def _part(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except (NotEndedError, TimeoutError, ModelyardError) as error:
            reason = str(error) or "It took too long."
            self.findings.failures[name] = reason
            self._progress.say(f"{name}: not measured. {reason}")

    async def _fleet(self, hosts: int) -> None:
        async with opened_site(hosts, self._sizes.jobs + LINES, self._profiler) as site:
            self._progress.say(f"{hosts:,} hosts are online")
            self.findings.servers = {
                "rabbitmq": site.stack.rabbitmq.version,
                "mongodb": site.stack.mongodb.version,
            }
            with self._progress.step("Jobs") as step:
                await site.load_jobs(self._jobs)
                step.result = f"{len(self._jobs):,} jobs loaded"
            # First, because a fleet that was overloaded needs a while to come to rest.
            await self._part(f"{hosts:,} hosts, same rate", partial(self._paced, site, hosts))
            await self._part(f"{hosts:,} hosts, load", partial(self._load, site, hosts))
            if hosts == HOSTS_OF_WAITING and self._sizes.waiting:
                await self._part("Waiting operations", partial(self._waiting, site))
            if hosts == HOSTS_OF_TAKEOVER and self._sizes.takeovers:
                await self._part("Takeover", partial(self._takeovers, site))

    async def _paced(self, site: Site, hosts: int) -> None:
        with self._progress.step("Constant rate") as step:
            idle_cpu = self.findings.idle_cpu[hosts] = await measure_idle(site, self._windows)
            found = await measure_paced(site, self._jobs, self._windows, idle_cpu)
            self.findings.paced[hosts] = found
            step.result = (
                f"{hosts:,} hosts, {found.submitted_per_s:.0f}/s sent, {found.per_s:.0f}/s ended: "
                f"{found.cpu_ms[ACTIVE]:.2f} ms of dispatcher CPU each"
            )

    async def _load(self, site: Site, hosts: int) -> None:
        with self._progress.step("Load") as step:
            found = self.findings.hosts[hosts] = await measure(
                site, self._jobs, self._windows, f"{hosts} hosts, full load"
            )
            step.result = f"{hosts:,} hosts: {_sentence(found)}"

    async def _waiting(self, site: Site) -> None:
        room = await self._opened_room(site)
        for waiting in self._sizes.waiting:
            await self._fill(site, room, waiting)
            with self._progress.step("Load") as step:
                found = self.findings.waiting[waiting] = await measure(
                    site, self._jobs, self._windows, f"{waiting} waiting"
                )
                step.result = f"{waiting:,} waiting: {_sentence(found)}"

    async def _takeovers(self, site: Site) -> None:
        room = await self._opened_room(site)
        await self._fill(site, room, min(WAITING_AT_TAKEOVER, self._sizes.most_waiting))
        active, standby = ACTIVE, STANDBY
        for _ in range(self._sizes.takeovers):
            with self._progress.step("Takeover") as step:
                await site.start_dispatcher(standby)
                found = await measure_takeover(site, active, self._jobs)
                self.findings.takeovers.append(found)
                step.result = (
                    f"Takeover: first command {found.first_command_s:.1f} s after the kill, "
                    f"end of the lease after {found.lease_ended_s:.1f} s, "
                    f"all jobs answered after {found.all_ended_s:.1f} s"
                )
            active, standby = standby, active

    async def _opened_room(self, site: Site) -> WaitingRoom:
        room = WaitingRoom(site.stack.mongodb.url)
        with self._progress.step("Waiting room") as step:
            await room.open(site.load, within_s=SET_UP_S)
            step.result = f"{room.waiting:,} operations wait, submitted over AMQP"
        return room

    async def _fill(self, site: Site, room: WaitingRoom, waiting: int) -> None:
        """Fill the waiting room while no dispatcher runs, and start one."""
        with self._progress.step("Waiting room") as step:
            await asyncio.to_thread(site.stack.stop_dispatcher)
            await asyncio.to_thread(room.fill, waiting, step.note)
            await site.start_dispatcher(ACTIVE)
            seconds = await site.until_answering(self._jobs[0])
            step.result = f"{room.waiting:,} wait; a new dispatcher answered after {seconds:.1f} s"


def _sentence(found: Measurement) -> str:
    return (
        f"{found.per_s:.0f} operations/s, {found.cpu_ms[ACTIVE]:.2f} ms of dispatcher CPU each, "
        f"p50 {found.p50_ms:.0f} ms, dispatcher {found.rss_mib[ACTIVE]:.0f} MiB"
    )
