"""The database of a fleet is lost and restored, by the commands that an operator has."""

import asyncio
import os
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from modelyard.contract.states import JobState, OperationState
from tests.faults.harness.checked_fleet import DISPATCHERS, CheckedFleet
from tests.faults.harness.load import Request
from tests.support.waiting import eventually
from tests.upgrade.containers import loaded_and_created, seen_of

RUNS_S = 8.0
"""An inference: longer than the backup takes, so that it ends while nobody records."""


@pytest.mark.timeout(300)
async def test_after_a_restore_everything_goes_on_and_nothing_is_repeated(
    fleet: CheckedFleet, tmp_path: Path
) -> None:
    jobs = await loaded_and_created(fleet)
    seen = await seen_of(fleet, jobs)
    loaded = [job_id for job_id, job in jobs.items() if job["state"] == JobState.LOADED]
    # Two run, and one waits for a place.
    ids = [await infer(fleet, job_id) for job_id in loaded for _ in range(3)]
    await recorded_as_begun(fleet, ids)

    await fleet.stop("gateway", *DISPATCHERS)
    backup = tmp_path / "backup"
    assert "operations" in await command(fleet, "backup", backup)
    await lose_the_database(fleet)
    await command(fleet, "restore", backup)
    for name in ("gateway", *DISPATCHERS):
        await fleet.launch(name)
    await fleet.ready(within_s=60)

    ids += [await infer(fleet, job_id) for job_id in loaded]
    for operation_id in ids:
        await fleet.ended(operation_id, within_s=120)
    await fleet.succeeded(ids)
    runs = [run.tag for run in fleet.collector.runs]
    assert sorted(runs) == sorted(ids)
    assert await seen_of(fleet, jobs) == seen
    await fleet.holds()


async def infer(fleet: CheckedFleet, job_id: str) -> str:
    request = Request(uuid.uuid4().hex, {"job_id": job_id, "operation_type": "INFER"})
    request.body["input"] = {"sleep": RUNS_S, "tag": request.operation_id}
    return await fleet.doors.submit(request)


async def recorded_as_begun(fleet: CheckedFleet, ids: list[str]) -> None:
    """Return once some of these are recorded as running, and the others as waiting."""

    async def it_is() -> bool:
        states = await fleet.states(ids)
        return states == {OperationState.RUNNING: 4, OperationState.QUEUED: 2}

    await eventually(it_is, within_s=40, what="four inferences that run")


async def command(fleet: CheckedFleet, name: str, backup: Path) -> str:
    """Run `modelyard database`; return what it prints."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MODELYARD_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "modelyard.cli", "database", name, str(backup)),
        env={**clean, "MODELYARD_MONGO_URL": fleet.processes.mongo_url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def lose_the_database(fleet: CheckedFleet) -> None:
    async with AsyncMongoClient[dict[str, Any]](fleet.processes.mongo_url) as client:
        database = client.get_default_database()
        assert await database["jobs"].count_documents({}) > 0
        await client.drop_database(database)
        assert await database.list_collection_names() == []
