"""Containers that carry our labels and belong to no job: removed after a grace, or only told of."""

import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest

from tests.e2e.catalog import PROBE
from tests.faults.harness.checked_fleet import CheckedFleet
from tests.faults.table import ORPHANS
from tests.support.waiting import eventually
from worker.engine.labels import ContainerLabels

HOST = "h1"
BOTH = ("dispatcher", "dispatcher-2")
GRACE_S = 12.0
REMOVED_S = GRACE_S + 40.0
"""Each dispatcher counts the grace from its own first sight, and looks come every ten seconds."""
LOOKS = 2
LOOKED_S = 70.0
pytestmark = [pytest.mark.faults, pytest.mark.fault(ORPHANS)]


async def test_a_container_of_a_job_that_nobody_knows_is_removed_after_the_grace(
    fleet: CheckedFleet,
) -> None:
    async with _dispatchers(fleet, ORPHAN_GRACE_S=str(GRACE_S)):
        neighbour = fleet.job_id()
        job = await fleet.loaded(neighbour)
        since = time.monotonic()
        running = await orphan(fleet, fleet.job_id(), start=True)
        at_rest = await orphan(fleet, fleet.job_id(), start=False)
        for container_id in (running, at_rest):
            await eventually(
                partial(is_gone, fleet, container_id),
                within_s=REMOVED_S,
                what=f"the end of {container_id}",
            )
            assert time.monotonic() - since > GRACE_S
        await fleet.done("INFER", neighbour, input={})
        assert (await fleet.job(neighbour))["container_id"] == job["container_id"]
    await fleet.holds()


async def test_a_container_that_a_known_job_never_had_is_removed_and_its_own_stays(
    fleet: CheckedFleet,
) -> None:
    async with _dispatchers(fleet, ORPHAN_GRACE_S="1"):
        job_id = fleet.job_id()
        job = await fleet.loaded(job_id, model="load-http")
        label = {"host": job["host_id"], "generation": job["generation"] + 3}
        container_id = await orphan(fleet, job_id, start=True, **label)
        await eventually(
            lambda: is_gone(fleet, container_id, job["host_id"]),
            within_s=REMOVED_S,
            what=f"the end of {container_id}",
        )
        await fleet.done("INFER", job_id, input={})
        assert (await fleet.job(job_id))["container_id"] == job["container_id"]
    await fleet.holds()


async def test_a_dry_run_leaves_such_a_container_alone_and_says_so(fleet: CheckedFleet) -> None:
    async with _dispatchers(fleet, ORPHAN_GRACE_S="1", ORPHAN_DRY_RUN="true"):
        container_id = await orphan(fleet, fleet.job_id(), start=True)
        await eventually(
            lambda: _told(fleet, "orphan.kept_by_dry_run", container_id),
            within_s=LOOKED_S,
            what="a word of what a dry run keeps",
        )
        found = {one.container_id: one for one in await fleet.engines[HOST].labelled(HOST)}
        assert found[container_id].state == "running"
        await fleet.engines[HOST].remove(container_id)
    await fleet.holds()


@asynccontextmanager
async def _dispatchers(fleet: CheckedFleet, **settings: str) -> AsyncIterator[None]:
    """Have both dispatchers run with other settings meanwhile."""
    environment = {f"MODELYARD_DISPATCHER_{name}": value for name, value in settings.items()}
    await fleet.stop(*BOTH)
    for name in BOTH:
        await fleet.launch(name, **environment)
    yield
    await fleet.stop(*BOTH)
    for name in BOTH:
        await fleet.launch(name)


async def orphan(
    fleet: CheckedFleet, job_id: str, *, start: bool, host: str = HOST, generation: int = 1
) -> str:
    """Make a container behind Modelyard's back that looks like one of its own."""
    labels = ContainerLabels(
        host_id=host,
        job_id=job_id,
        operation_id=str(uuid.uuid4()),
        generation=generation,
        spec="0" * 12,
        port=8080,
        ready="/ready",
    )
    config = {"Image": PROBE, "Labels": labels.as_labels()}
    return await fleet.engines[host].create(labels.name, config, start=start)


async def is_gone(fleet: CheckedFleet, container_id: str, host: str = HOST) -> bool:
    return container_id not in {one["Id"] for one in await fleet.engines[host].containers()}


async def _told(fleet: CheckedFleet, event: str, container_id: str) -> bool:
    """Tell whether the dispatchers have said so of a container, look after look."""
    lines = [
        line
        for name in BOTH
        for line in fleet.service(name).daemon.log.read_text(errors="replace").splitlines()
    ]
    return sum(event in line and container_id in line for line in lines) >= LOOKS
