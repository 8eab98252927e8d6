"""The measurements of `make bench`: warm-up, then rounds in which each system has its turn.

Each kind of measurement is warmed up by itself, and sized by the rate of its own warm-up, so that
the throughput of each system is measured for about as long.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from pymongo import AsyncMongoClient

from bench import bare_endpoint
from bench.goals import Measured
from bench.jobs import BODY, load_jobs
from bench.load import Gateway, model_latencies, model_rate
from bench.measuring import BareEndpoint, Measuring
from bench.peer_processes import running_peer
from bench.peers.settings import PeerSettings
from bench.warm_up import FIRST, warm_rate
from deploy.local.ports import LOOPBACK, accepts, free_port
from deploy.local.services import Service, url_on
from deploy.local.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from bench.jobs import LoadedJobs
    from bench.measuring import Section
    from bench.stack import BenchStack
    from deploy.local.progress import Progress

JOBS = 4
"""Loaded jobs, each with a model server of its own."""
PEERS = ("taskiq", "celery")

_MODEL_REQUESTS = 10_000
_ONE_AT_A_TIME_COLD = 50
_WARM_UP_SHARE = 1 / 3
"""A measurement is warm once a run of it has taken this share of its seconds."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    rounds: int
    seconds: float
    """About how long each measurement of throughput takes, and the one at a constant rate."""
    accepted_s: float
    """About how long each measurement of acceptances takes.

    The dispatcher is paused meanwhile, and its term has to outlast that, also where the rate is
    less than at the warm-up: 3.5 s of a term are left at the least (`dispatcher.leadership`).
    """
    one_at_a_time: int
    """Operations in each measurement of latencies."""


FULL = Sizes(rounds=3, seconds=7.0, accepted_s=2.0, one_at_a_time=200)
QUICK = Sizes(rounds=1, seconds=3.0, accepted_s=1.0, one_at_a_time=50)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of measurement whose size is chosen so that it takes `seconds`."""

    measure: Callable[[int], Awaitable[Section]]
    """Does so many operations."""
    seconds: float

    async def sized(self) -> int:
        """Warm it up; return how many operations take its seconds."""
        rate = await warm_rate(self.measure, self.seconds * _WARM_UP_SHARE)
        return max(FIRST, round(rate * self.seconds))


async def measure(stack: BenchStack, sizes: Sizes, progress: Progress) -> Measured:
    """Load the jobs, start the peers, and measure all rounds. Takes some minutes."""
    jobs = await load_jobs(stack, JOBS)
    settings = PeerSettings(
        stack.endpoints.amqp_url, stack.endpoints.mongo_url, ",".join(jobs.infer_urls), BODY
    )
    async with AsyncExitStack() as exits:
        mongo = AsyncMongoClient[dict[str, Any]](stack.endpoints.mongo_url)
        await exits.enter_async_context(mongo)
        bare = await exits.enter_async_context(_running_endpoint(stack, jobs))
        gateway = await exits.enter_async_context(
            Gateway(stack.endpoints.url, stack.api_key, jobs.job_ids)
        )
        peers = [
            await exits.enter_async_context(running_peer(name, settings, stack.layout))
            for name in PEERS
        ]
        records = mongo.get_default_database()
        measuring = Measuring(stack, gateway, records, peers, bare)
        return await Rounds(measuring, jobs, sizes, progress).run()


class Rounds:
    """Lets each system have its turn in each round."""

    def __init__(
        self, measuring: Measuring, jobs: LoadedJobs, sizes: Sizes, progress: Progress
    ) -> None:
        self._measuring = measuring
        self._jobs = jobs
        self._sizes = sizes
        self._progress = progress

    async def run(self) -> Measured:
        """Warm everything up, measure, and return what was measured."""
        with self._progress.step("Warm-up"):
            await model_rate(self._jobs.infer_urls, FIRST)
            model_rate_alone = await model_rate(self._jobs.infer_urls, _MODEL_REQUESTS)
            operations = {name: await kind.sized() for name, kind in self._kinds.items()}
            await self._latencies(_ONE_AT_A_TIME_COLD, self._sizes.seconds * _WARM_UP_SHARE)
        self._measuring.begin()
        for number in range(1, self._sizes.rounds + 1):
            with self._progress.step(f"Round {number} of {self._sizes.rounds}"):
                await self._one_round(operations)
        requests = await model_latencies(self._jobs.infer_urls[0], FIRST)
        return Measured(self._measuring.sections, median(requests), model_rate_alone)

    async def _one_round(self, operations: Mapping[str, int]) -> None:
        """Measure each system once."""
        for name, kind in self._kinds.items():
            await kind.measure(operations[name])
        await self._latencies(self._sizes.one_at_a_time, self._sizes.seconds)

    @property
    def _kinds(self) -> dict[str, Kind]:
        """What is measured with many operations at once, in this order."""
        measuring, sizes = self._measuring, self._sizes
        peers = {
            peer.name: Kind(partial(measuring.peer_throughput, peer), sizes.seconds)
            for peer in measuring.peers
        }
        return {
            "batches": Kind(measuring.batches, sizes.seconds),
            **peers,
            "singles": Kind(measuring.singles, sizes.seconds),
            "accepted": Kind(measuring.accepted, sizes.accepted_s),
            "bare": Kind(measuring.bare, sizes.accepted_s),
        }

    async def _latencies(self, operations: int, seconds: float) -> None:
        """Measure each system one at a time, and Modelyard at half of the last rate of singles."""
        measuring = self._measuring
        for peer in measuring.peers:
            await measuring.peer_one_at_a_time(peer, operations)
        await measuring.one_at_a_time(operations)
        singles = next(one for one in reversed(measuring.sections) if one.what == "singles")
        await measuring.at_rate(singles.rate / 2, seconds)


@asynccontextmanager
async def _running_endpoint(stack: BenchStack, jobs: LoadedJobs) -> AsyncIterator[BareEndpoint]:
    port = free_port()
    folders = {"root": stack.layout.root, "folder": stack.layout.data, "logs": stack.layout.logs}
    service = Service(bare_endpoint.__name__, name="bare-endpoint", **folders)
    service.launch({bare_endpoint.PORT_VARIABLE: str(port)})
    try:
        wait_until(lambda: accepts(port), 30, f"the bare endpoint on {LOOPBACK}:{port}")
        async with Gateway(url_on(port), None, jobs.job_ids) as client:
            yield BareEndpoint(service, client)
    finally:
        service.stop()
