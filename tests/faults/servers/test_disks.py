"""Faults of disks: that of a host is full, and that of the database."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from deploy.local.docker_engine import DockerEngine
from deploy.local.images import PROBE, ensure_images
from deploy.local.mongodb import MongoDB
from tests.faults.conftest import Sites, measured
from tests.faults.containers.test_containers import TAKEN
from tests.faults.harness.checked_fleet import (
    CheckedFleet,
    Json,
    Servers,
    make_site,
    open_checked_fleet,
)
from tests.faults.harness.load import Load, Mix
from tests.support.servers.disk import SmallDisk
from tests.support.waiting import eventually

HOST = "small"
ENGINE_MIB = 256
"""The image takes half of it."""
DATABASE_MIB = 512
ATTEMPTS = 3
ANSWERED_S = 2.5
"""Two seconds for the first one, who finds out, and what the way takes."""
NO_SPACE = "no space left on device"
pytestmark = [pytest.mark.faults, pytest.mark.fault(TAKEN)]


@dataclass(frozen=True)
class Small:
    """A fleet one of whose servers has a small disk, and that disk."""

    fleet: CheckedFleet
    disk: SmallDisk


@asynccontextmanager
async def _fleet_on(
    servers: Servers, folder: Path, request: pytest.FixtureRequest
) -> AsyncIterator[CheckedFleet]:
    """Run a fleet for one test alone."""
    site = make_site(servers, folder)
    site.intact = False
    try:
        await asyncio.to_thread(site.processes.start)
        async with open_checked_fleet(site) as fleet:
            yield fleet
            measured(request, fleet)
            site.intact = fleet.checked and not fleet.violations
    finally:
        await asyncio.to_thread(site.close)


@pytest.fixture
async def small_host(
    servers: Servers, sites: Sites, folder: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Small]:
    """Give the test `h1`, which is as usual, and a host whose engine has a small disk."""
    await asyncio.to_thread(sites.close)  # both would work on the same engine
    engine = DockerEngine(folder / "small-engine")
    disk = SmallDisk(engine.folder / "engine", mib=ENGINE_MIB)  # the engine's data root
    async with AsyncExitStack() as stack:
        stack.enter_context(disk.mounted())
        stack.push_async_callback(asyncio.to_thread, engine.stop)
        await asyncio.to_thread(engine.start)
        await asyncio.to_thread(ensure_images, engine.url, print, which=(PROBE,))
        engines = {"h1": servers.engines["h1"], HOST: engine}
        own = dataclasses.replace(servers, engines=engines)
        fleet = await stack.enter_async_context(_fleet_on(own, folder, request))
        await fleet.put_probe("here", host_labels={"name": HOST}, max_concurrency=2)
        yield Small(fleet, disk)


async def test_a_full_disk_of_a_host_is_told_and_takes_nothing_with_it(
    small_host: Small,
) -> None:
    fleet = small_host.fleet
    loaded, created, refused = fleet.job_id(), fleet.job_id(), fleet.job_id()
    await fleet.loaded(loaded, model="here")
    await fleet.done("DEPLOY_CREATE", created, model="here")
    load = await fleet.load(Mix(jobs=2, temps=2, batches=1))
    with small_host.disk.full():
        loading = asyncio.create_task(load.run())
        told = [
            await fleet.submit("DEPLOY_CREATE", refused, model="here"),
            await fleet.submit("TEMP", fleet.job_id(), model="here", input={}),
        ]
        for operation_id in told:
            _told_full(await fleet.ended(operation_id))
        await fleet.done("INFER", loaded, input={})
        ids = await loading
        await fleet.holds()
        await fleet.succeeded(ids)  # on the other host
        host = await fleet.host(HOST)
        assert host["liveness"] == "ONLINE"
        assert {one["job_id"] for one in host["reservations"]} == {loaded, created}
    await fleet.done("DEPLOY_LOAD", created)
    await fleet.loaded(refused, model="here")
    await fleet.done("TEMP", fleet.job_id(), model="here", input={})
    await fleet.holds()


def _told_full(one: Json) -> None:
    """Look that an operation failed for want of space, and only after it was tried again."""
    assert (one["state"], one["error"]["code"]) == ("FAILED", "disk_full")
    assert NO_SPACE in one["error"]["message"]
    assert one["epoch"] == ATTEMPTS


@pytest.fixture
async def small_database(
    servers: Servers, sites: Sites, folder: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Small]:
    """Give the test a fleet on a MongoDB of one member that has a small disk."""
    await asyncio.to_thread(sites.close)  # both would work on the same engines
    mongodb = MongoDB(folder / "small-mongodb")
    disk = SmallDisk(mongodb.folder / mongodb.members[0].name, mib=DATABASE_MIB)
    async with AsyncExitStack() as stack:
        stack.enter_context(disk.mounted())
        stack.push_async_callback(asyncio.to_thread, mongodb.stop)
        await asyncio.to_thread(mongodb.start)
        own = dataclasses.replace(servers, mongodb=mongodb)
        fleet = await stack.enter_async_context(_fleet_on(own, folder, request))
        yield Small(fleet, disk)


async def test_a_full_disk_of_the_database_costs_nothing_that_was_accepted(
    small_database: Small,
) -> None:
    """A mongod that can't write ends itself; the gateway goes on with RabbitMQ alone."""
    fleet = small_database.fleet
    mongodb = fleet.servers.mongodb
    load = await fleet.load(pause_s=0.3)
    loading = asyncio.create_task(load.run())
    await fleet.running_any()
    try:
        with small_database.disk.full():
            await asyncio.to_thread(_checkpoint, mongodb)

            async def it_has_ended() -> bool:
                return not mongodb.running

            await eventually(it_has_ended, within_s=90, what="the end of a mongod without space")
            began = time.monotonic()
            ids = [await fleet.submit("TEMP", fleet.job_id(), model="load-http", input={})]
            assert time.monotonic() - began < ANSWERED_S
            ids += await Load(fleet.doors, Mix(batches=0)).run()
    finally:
        await asyncio.to_thread(mongodb.start)
    ids += await loading
    await fleet.holds()
    await fleet.succeeded(ids)


def _checkpoint(mongodb: MongoDB) -> None:
    """Have mongod write now what it would write within a minute."""
    with (
        suppress(PyMongoError),  # it may not live to answer
        MongoClient[Json](mongodb.url, serverSelectionTimeoutMS=5_000) as client,
    ):
        client.admin.command("fsync")
