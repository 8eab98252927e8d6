"""The sections of a round: each measures one system, with the CPU and memory of every process."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from bench import processes
from bench.ends import until_ended
from bench.load import BATCH
from bench.statistics import percentile
from deploy.local.processes import ProcessId

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from pymongo.asynchronous.database import AsyncDatabase

    from bench.load import Gateway
    from bench.peer_processes import Peer
    from bench.stack import BenchStack
    from deploy.local.services import Service

GENERATOR = "load generator"
_CLOCKS_DIFFER_S = 0.05
"""By how much a gateway may take the database's time for earlier than it is here."""
_MIB = 1 << 20
_MS = 1_000
_PERCENTILES = (50, 90, 99, 100)
_ACCEPTED = "accepted"


@dataclass(frozen=True, slots=True)
class Section:
    """One measurement of one system."""

    system: str
    what: str
    operations: int
    seconds: float
    """From the first submission to the last end."""
    cpu_ms: Mapping[str, float]
    """CPU milliseconds per operation, by service."""
    rss_mib: Mapping[str, float]
    """Resident memory at the end, by service."""
    accepted_seconds: float | None = None
    """From the first submission to the last acceptance."""
    latencies_s: Sequence[float] = field(default=(), repr=False)

    @property
    def rate(self) -> float:
        """Operations per second, end to end."""
        return self.operations / self.seconds

    def figures(self) -> dict[str, object]:
        """Return everything as JSON can hold it; of latencies some percentiles, in ms."""
        figures = asdict(self)
        del figures["latencies_s"]
        if self.latencies_s:
            figures["latency_ms"] = {
                f"p{percent}": percentile(self.latencies_s, percent) * _MS
                for percent in _PERCENTILES
            }
        return figures


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a measured call returns."""

    seconds: float
    accepted_seconds: float | None = None
    latencies_s: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class BareEndpoint:
    """The bare FastAPI endpoint, and a client of it."""

    service: Service
    client: Gateway


class Measuring:
    """Measures sections, one after the other."""

    def __init__(
        self,
        stack: BenchStack,
        gateway: Gateway,
        records: AsyncDatabase[dict[str, Any]],
        peers: Sequence[Peer],
        bare: BareEndpoint,
    ) -> None:
        self._stack = stack
        self._gateway = gateway
        self._records = records
        self.peers = peers
        self._bare = bare
        self.sections: list[Section] = []
        self._warm = False

    def begin(self) -> None:
        """Forget what was measured so far, which was the warm-up; only the rest is sampled."""
        self.sections.clear()
        self._warm = True

    async def batches(self, operations: int) -> Section:
        """Modelyard, in an even number of batches, so that none is sent alone."""
        whole = in_pairs_of_batches(operations)

        async def run() -> Outcome:
            return await self._until_recorded(whole, self._gateway.submit_batches)

        return await self._section("modelyard", "batches", whole, run)

    async def singles(self, operations: int) -> Section:
        """Modelyard, each operation in a request of its own."""

        async def run() -> Outcome:
            return await self._until_recorded(operations, self._gateway.submit_singles)

        return await self._section("modelyard", "singles", operations, run)

    async def accepted(self, operations: int) -> Section:
        """Modelyard's gateway and its servers, while the dispatcher is paused.

        The accepted work is done afterwards. The pause has to be shorter than what is left of the
        dispatcher's term, so nothing is sampled: a profiler takes seconds to begin and to end.
        """
        dispatcher = self._stack.services.dispatcher
        query = _succeeded_since_now()

        async def run() -> Outcome:
            accepted_s = await self._gateway.submit_singles(operations)
            return Outcome(accepted_s, accepted_s)

        await asyncio.to_thread(dispatcher.pause)
        try:
            section = await self._section("modelyard", _ACCEPTED, operations, run)
        finally:
            dispatcher.resume()
        await until_ended(self._records, "operations", query, operations)
        return section

    async def bare(self, operations: int) -> Section:
        """Measure the bare endpoint with single requests."""

        async def run() -> Outcome:
            accepted_s = await self._bare.client.submit_singles(operations)
            return Outcome(accepted_s, accepted_s)

        return await self._section("bare", _ACCEPTED, operations, run)

    async def one_at_a_time(self, operations: int) -> Section:
        """Modelyard, each operation after the end of the one before."""

        async def run() -> Outcome:
            latencies = await self._gateway.one_at_a_time(operations)
            return Outcome(sum(latencies), latencies_s=latencies)

        return await self._section("modelyard", "one at a time", operations, run)

    async def at_rate(self, per_s: float, seconds: float) -> Section:
        """Modelyard at a constant rate."""

        async def run() -> Outcome:
            began = time.monotonic()
            latencies = await self._gateway.at_rate(per_s, seconds)
            return Outcome(time.monotonic() - began, latencies_s=latencies)

        return await self._section("modelyard", "constant rate", int(per_s * seconds), run)

    async def peer_throughput(self, peer: Peer, operations: int) -> Section:
        """Measure a peer, 64 publishes at once."""

        async def run() -> Outcome:
            return Outcome(await peer.throughput(operations))

        return await self._section(peer.name, "throughput", operations, run)

    async def peer_one_at_a_time(self, peer: Peer, operations: int) -> Section:
        """Measure a peer, each task after the end of the one before."""

        async def run() -> Outcome:
            latencies = await peer.one_at_a_time(operations)
            return Outcome(sum(latencies), latencies_s=latencies)

        return await self._section(peer.name, "one at a time", operations, run)

    async def _until_recorded(
        self, operations: int, submit: Callable[[int], Awaitable[float]]
    ) -> Outcome:
        """Submit, and wait until all are recorded as SUCCEEDED; one that fails ends the run."""
        query = _succeeded_since_now()
        began = time.monotonic()
        accepted_s = await submit(operations)
        ended = await until_ended(self._records, "operations", query, operations)
        return Outcome(ended - began, accepted_s)

    async def _section(
        self, system: str, what: str, operations: int, run: Callable[[], Awaitable[Outcome]]
    ) -> Section:
        watched = self._processes()  # what starts later is not counted; the warm-up starts all
        sampled = self._warm and system == "modelyard" and what != _ACCEPTED
        async with self._stack.sampling(what) if sampled else nullcontext():
            before = processes.read(watched)
            outcome = await run()
            after = processes.read(watched)
        used = processes.cpu_between(before, after)
        section = Section(
            system=system,
            what=what,
            operations=operations,
            seconds=outcome.seconds,
            cpu_ms={name: cpu_s * _MS / operations for name, cpu_s in used.items()},
            rss_mib={name: rss / _MIB for name, rss in processes.memory(after).items()},
            accepted_seconds=outcome.accepted_seconds,
            latencies_s=outcome.latencies_s,
        )
        self.sections.append(section)
        return section

    def _processes(self) -> dict[str, set[ProcessId]]:
        found = self._stack.processes()
        own = ProcessId.of(os.getpid())
        found[GENERATOR] = {own} if own else set()
        found["bare FastAPI"] = self._bare.service.daemon.family()
        for peer in self.peers:
            for name, of in peer.processes().items():
                found.setdefault(name, set()).update(of)
        return found


def in_pairs_of_batches(operations: int) -> int:
    """Return the number next to this one that is a whole number of pairs of batches, not none."""
    return max(1, round(operations / (2 * BATCH))) * 2 * BATCH


def _succeeded_since_now() -> dict[str, Any]:
    since = datetime.now(UTC) - timedelta(seconds=_CLOCKS_DIFFER_S)
    return {"state": "SUCCEEDED", "accepted_at": {"$gte": since}}
