"""Jobs on each host, and what their containers show if they were left alone."""

from collections.abc import Mapping
from typing import Any

from modelyard.contract.states import JobState
from tests.e2e.fleet import Engine
from tests.faults.harness.checked_fleet import CheckedFleet

HOSTS = ("h1", "h2")

Json = dict[str, Any]


async def loaded_and_created(fleet: CheckedFleet) -> dict[str, Json]:
    """Return jobs, a loaded and a created one on each host, by their ids."""
    for host_id in HOSTS:
        await fleet.put_probe(f"on-{host_id}", max_concurrency=2, host_labels={"name": host_id})
    job_ids = [fleet.job_id() for _ in range(2 * len(HOSTS))]
    for job_id, host_id in zip(job_ids, HOSTS * 2, strict=True):
        await fleet.done("DEPLOY_CREATE", job_id, model=f"on-{host_id}")
    for job_id in job_ids[: len(HOSTS)]:
        await fleet.done("DEPLOY_LOAD", job_id)
    return {job_id: await fleet.job(job_id) for job_id in job_ids}


async def seen_of(fleet: CheckedFleet, job_ids: Mapping[str, Json]) -> dict[str, object]:
    """Return what changes if a job is repeated, restarted or moved."""
    return {job_id: await _seen_of(fleet, await fleet.job(job_id)) for job_id in job_ids}


async def _seen_of(fleet: CheckedFleet, job: Json) -> tuple[object, ...]:
    engine = Engine(fleet.servers.engines[job["host_id"]].url)
    try:
        (found,) = await engine.containers(job["_id"])
        facts = await engine.inspect(found["Id"])
        loads: Mapping[str, int] = {}
        if job["state"] == JobState.LOADED:
            loads = await engine.stats_page(found["Id"])
    finally:
        await engine.close()
    recorded = [job[name] for name in ("state", "host_id", "generation", "container_id")]
    return (*recorded, found["Id"], facts["State"]["StartedAt"], loads.get("load_calls", 0))
