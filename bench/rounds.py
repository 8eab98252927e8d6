"""The measurements of `make bench`: warm-up, then rounds in which each system has its turn."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
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
from deploy.local.ports import LOOPBACK, accepts, free_port
from deploy.local.services import Service, url_on
from deploy.local.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.jobs import LoadedJobs
    from bench.stack import BenchStack
    from deploy.local.progress import Progress

JOBS = 4
"""Loaded jobs, each with a model server of its own."""
PEERS = ("taskiq", "celery")

_WARM_UP = 500
_MODEL_REQUESTS = 10_000


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured; `seconds` is about how long each measurement of throughput takes."""

    rounds: int
    seconds: float
    one_at_a_time: int
    """Operations in each measurement of latencies."""
    bare_requests: int


FULL = Sizes(rounds=3, seconds=8.0, one_at_a_time=200, bare_requests=10_000)
QUICK = Sizes(rounds=1, seconds=3.0, one_at_a_time=50, bare_requests=3_000)


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
            await model_rate(self._jobs.infer_urls, _WARM_UP)
            model_rate_alone = await model_rate(self._jobs.infer_urls, _MODEL_REQUESTS)
            own = await self._measuring.batches(_WARM_UP)
            theirs = {
                peer.name: await self._measuring.peer_throughput(peer, _WARM_UP)
                for peer in self._measuring.peers
            }
            await self._measuring.bare(_WARM_UP)
        sized = {name: self._sized(section.rate) for name, section in theirs.items()}
        self._measuring.sections.clear()
        for number in range(1, self._sizes.rounds + 1):
            with self._progress.step(f"Round {number} of {self._sizes.rounds}"):
                await self._one_round(self._sized(own.rate), sized)
        requests = await model_latencies(self._jobs.infer_urls[0], _WARM_UP)
        return Measured(self._measuring.sections, median(requests), model_rate_alone)

    async def _one_round(self, own: int, theirs: dict[str, int]) -> None:
        """Measure each system once."""
        measuring, sizes = self._measuring, self._sizes
        await measuring.batches(own)
        for peer in measuring.peers:
            await measuring.peer_throughput(peer, theirs[peer.name])
        singles = await measuring.singles(own)
        await measuring.accepted(own)
        await measuring.bare(sizes.bare_requests)
        for peer in measuring.peers:
            await measuring.peer_one_at_a_time(peer, sizes.one_at_a_time)
        await measuring.one_at_a_time(sizes.one_at_a_time)
        await measuring.at_rate(singles.rate / 2, sizes.seconds)

    def _sized(self, rate: float) -> int:
        """Return how many operations take about `seconds`, from the rate of the warm-up."""
        return max(_WARM_UP, int(rate * self._sizes.seconds))


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
