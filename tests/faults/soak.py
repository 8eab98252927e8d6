"""`make soak`: a load, a nemesis with a seed, and the checker at the end."""

import argparse
import asyncio
import logging
import random
import secrets
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx2

from deploy.local.docker_engine import DockerEngine
from deploy.local.images import ensure_images
from deploy.local.mongodb import MongoDB
from deploy.local.ports import free_port
from deploy.local.rabbitmq import RabbitMQ
from tests.faults.conftest import MEMBERS
from tests.faults.harness.checked_fleet import (
    CheckedFleet,
    Servers,
    Site,
    make_site,
    open_checked_fleet,
)
from tests.faults.harness.load import Load, Mix
from tests.faults.harness.nemesis import EVERYTHING, Nemesis
from tests.support.servers.virtual_hosts import VirtualHosts

FOLDER = Path(__file__).resolve().parents[2] / "var" / "tests"
WAVE = Mix(jobs=4, infers=6, temps=4, batches=3)
CATALOG_WITHIN_S = 60.0
PAUSE_S = (2.0, 15.0)


def main() -> int:
    """Run and return the exit code: 0 if all held."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None, help="repeats a run's actions")
    asked = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if asked.seed is None else asked.seed
    say(f"seed {seed}, {asked.minutes:g} minutes")
    # Our own clients complain at each try about what is broken on purpose.
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    # Also where a shell has put us into the background; servers are ours to stop.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    folder = FOLDER / f"soak-{uuid.uuid4().hex[:8]}"
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        site = make_site(start_servers(folder, stack), folder)
        stack.callback(site.close)
        site.processes.start()
        return asyncio.run(soak(site, seed, asked.minutes * 60))


def start_servers(folder: Path, stack: ExitStack) -> Servers:
    """Start all servers; the stack stops them."""
    engines = {}
    for host_id, name in (("h1", "a"), ("h2", "b")):
        engine = DockerEngine(FOLDER / f"engine-{name}")
        stack.callback(engine.stop)
        engine.start()
        ensure_images(engine.url, say)
        engines[host_id] = engine
    folder.mkdir(parents=True)
    rabbitmq = RabbitMQ(folder / "rabbitmq")
    mongodb = MongoDB(folder / "mongodb", members=MEMBERS)
    stack.callback(rabbitmq.stop)
    stack.callback(mongodb.stop)
    rabbitmq.start()
    mongodb.start()
    network = engines["h1"].network
    if network is None:
        raise RuntimeError("an engine that runs has a network")
    collector = (str(network.gateway.ip), free_port())
    return Servers(rabbitmq, mongodb, engines, VirtualHosts(rabbitmq, "fault"), collector)


async def soak(site: Site, seed: int, seconds: float) -> int:
    """Break and load for so many seconds; return 0 if everything holds afterwards."""
    site.intact = False
    async with open_checked_fleet(site) as fleet:
        nemesis = Nemesis(fleet, random.Random(seed), say)
        over = asyncio.Event()
        loading = asyncio.create_task(_waves(fleet, random.Random(seed), over.is_set))
        await nemesis.rage(EVERYTHING, seconds=seconds, pause_s=PAUSE_S)
        over.set()
        ids = await loading
        say(f"{len(ids)} operations accepted, {fleet.doors.retries} retries; waiting for quiet")
        violations = await fleet.invariants.check()
        say(f"states: {dict(await fleet.states(ids))}; runs: {len(fleet.collector.runs)}")
        for one in violations:
            say(str(one))
        healed_s = fleet.invariants.healed_s
        quiet = "never" if healed_s is None else f"{healed_s:.1f} s"
        say(f"time to heal: {quiet}; {len(violations)} violations; seed {seed}")
    site.intact = not violations
    return 1 if violations else 0


async def _waves(fleet: CheckedFleet, choice: random.Random, over: Callable[[], bool]) -> list[str]:
    ids: list[str] = []
    while not over():
        load = await _prepared(fleet, choice)
        ids += await load.run()
    return ids


async def _prepared(fleet: CheckedFleet, choice: random.Random) -> Load:
    """Return the next wave; the catalog is in MongoDB and may be away for a while."""
    deadline = time.monotonic() + CATALOG_WITHIN_S
    while True:
        try:
            return await fleet.load(WAVE, choice=choice, pause_s=1.0, one_door=True)
        except (httpx2.HTTPError, AssertionError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(1)


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
