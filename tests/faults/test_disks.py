"""Faults of disks: the one of a host that is full."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.local.docker_engine import DockerEngine
from deploy.local.images import PROBE, ensure_images
from tests.faults.conftest import Sites, measured
from tests.faults.load import Mix
from tests.faults.test_containers import TAKEN
from tests.faults.yard import Json, Servers, Yard, make_site, open_yard
from tests.support.disk import SmallDisk

HOST = "small"
ENGINE_MIB = 256
"""The image takes half of it."""
ATTEMPTS = 3
NO_SPACE = "no space left on device"
pytestmark = [pytest.mark.faults, pytest.mark.fault(TAKEN)]


@dataclass(frozen=True)
class SmallHost:
    """A fleet of `h1`, which is as usual, and a host whose engine has a small disk."""

    yard: Yard
    disk: SmallDisk


@pytest.fixture
async def small_host(
    servers: Servers, sites: Sites, folder: Path, request: pytest.FixtureRequest
) -> AsyncIterator[SmallHost]:
    """Give the test a fleet of its own, one of whose hosts has a small disk."""
    await asyncio.to_thread(sites.close)  # both would work on the same engine
    engine = DockerEngine(folder / "small-engine")
    disk = SmallDisk(engine.folder / "engine", mib=ENGINE_MIB)  # the engine's data root
    async with AsyncExitStack() as stack:
        stack.enter_context(disk.mounted())
        stack.push_async_callback(asyncio.to_thread, engine.stop)
        await asyncio.to_thread(engine.start)
        await asyncio.to_thread(ensure_images, engine.url, print, which=(PROBE,))
        engines = {"h1": servers.engines["h1"], HOST: engine}
        site = make_site(dataclasses.replace(servers, engines=engines), folder)
        site.intact = False
        stack.push_async_callback(asyncio.to_thread, site.close)
        await asyncio.to_thread(site.fleet.start)
        yard = await stack.enter_async_context(open_yard(site))
        await yard.put_probe("here", host_labels={"name": HOST}, max_concurrency=2)
        yield SmallHost(yard, disk)
        measured(request, yard)
        site.intact = yard.checked and not yard.violations


async def test_a_full_disk_of_a_host_is_told_and_takes_nothing_with_it(
    small_host: SmallHost,
) -> None:
    yard = small_host.yard
    loaded, created, refused = yard.job_id(), yard.job_id(), yard.job_id()
    await yard.loaded(loaded, model="here")
    await yard.done("DEPLOY_CREATE", created, model="here")
    load = await yard.load(Mix(jobs=2, temps=2, batches=1))
    with small_host.disk.full():
        loading = asyncio.create_task(load.run())
        told = [
            await yard.submit("DEPLOY_CREATE", refused, model="here"),
            await yard.submit("TEMP", yard.job_id(), model="here", input={}),
        ]
        for operation_id in told:
            _told_full(await yard.ended(operation_id))
        await yard.done("INFER", loaded, input={})
        ids = await loading
        await yard.holds()
        await yard.succeeded(ids)  # on the other host
        host = await yard.host(HOST)
        assert host["liveness"] == "ONLINE"
        assert {one["job_id"] for one in host["reservations"]} == {loaded, created}
    await yard.done("DEPLOY_LOAD", created)
    await yard.loaded(refused, model="here")
    await yard.done("TEMP", yard.job_id(), model="here", input={})
    await yard.holds()


def _told_full(one: Json) -> None:
    """Look that an operation failed for want of space, and only after it was tried again."""
    assert (one["state"], one["error"]["code"]) == ("FAILED", "disk_full")
    assert NO_SPACE in one["error"]["message"]
    assert one["epoch"] == ATTEMPTS
