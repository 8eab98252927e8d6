"""Deaths of models that are loaded and that nobody asks anything: noticed soon, with the cause."""

import json
import time

import httpx2
import pytest

from deploy.local.ports import LOOPBACK
from tests.e2e.fleet import Engine
from tests.faults.harness.checked_fleet import CheckedFleet, Json
from tests.support.waiting import eventually

CONTAINER = "Container: OOM, exit code, killed from outside, never ready"
TOLD_S = 10.0
UNHEALTHY_S = 40.0
"""About half a minute: three looks without an answer."""
HICCUP_S = 10.0
"""A model that is silent for no longer than this is left alone."""
RESTARTS = 2
RESTARTED_S = 30.0
pytestmark = [pytest.mark.faults, pytest.mark.fault(CONTAINER)]


@pytest.mark.parametrize(
    ("wish", "code", "exit_code"),
    [({"exit": 7}, "exited", 7), ({"hold_bytes": 256 << 20}, "oom_killed", 137)],
)
async def test_a_loaded_model_that_dies_by_itself_fails_its_job_with_the_cause(
    fleet: CheckedFleet, wish: Json, code: str, exit_code: int
) -> None:
    await fleet.put_probe("small", resources={"memory": "96m"})
    job_id = fleet.job_id()
    job = await fleet.loaded(job_id, model="small")
    await _tell(fleet, job, "/infer", {"log": "last words", **wish})
    since = time.monotonic()
    detail = {"exit_code": exit_code, "log_tail": "last words\n"}
    await _fails_with(fleet, job_id, code, detail, within_s=TOLD_S)
    assert time.monotonic() - since < TOLD_S
    await fleet.holds()
    await _lives_again(fleet, job_id)


async def test_a_loaded_model_that_is_killed_from_outside_fails_its_job(
    fleet: CheckedFleet,
) -> None:
    job_id = fleet.job_id()
    job = await fleet.loaded(job_id)
    await fleet.engines[job["host_id"]].kill(job["container_id"])
    await _fails_with(fleet, job_id, "exited", {"exit_code": 137}, within_s=TOLD_S)
    await fleet.holds()
    await _lives_again(fleet, job_id)


async def test_a_loaded_model_that_stops_to_answer_ready_fails_its_job(fleet: CheckedFleet) -> None:
    job_id = fleet.job_id()
    job = await fleet.loaded(job_id)
    await _tell(fleet, job, "/unload", {})
    since = time.monotonic()
    detail = {
        "asked": "GET /ready on the container's port 8080",
        "last_answer": "503",
        "body": '{"ready": false}',
    }
    await _fails_with(fleet, job_id, "unhealthy", detail, within_s=UNHEALTHY_S)
    assert time.monotonic() - since > HICCUP_S
    await fleet.holds()
    await _lives_again(fleet, job_id)


async def test_a_model_that_restarts_on_failure_is_loaded_again_until_it_died_too_often(
    fleet: CheckedFleet,
) -> None:
    await fleet.put_probe("restarts", restart="on_failure", max_restarts=RESTARTS)
    job_id = fleet.job_id()
    job = await fleet.loaded(job_id, model="restarts")
    engine = fleet.engines[job["host_id"]]
    for times in range(1, RESTARTS + 1):
        await engine.kill(job["container_id"])
        now = await _restarted(fleet, job_id, times)
        assert (now["host_id"], now["container_id"]) == (job["host_id"], job["container_id"])
        await fleet.done("INFER", job_id, input={})
    await engine.kill(job["container_id"])
    await _fails_with(fleet, job_id, "exited", {"exit_code": 137}, within_s=TOLD_S)
    await fleet.holds()
    ours = await fleet.database.all("operations", {"job_id": job_id, "source": "system"})
    assert [(one["verb"], one["state"]) for one in ours] == [
        ("DEPLOY_LOAD", "SUCCEEDED")
    ] * RESTARTS


async def _tell(fleet: CheckedFleet, job: Json, path: str, wish: Json) -> None:
    """Speak to a job's container past Modelyard, to which the job stays idle."""
    engine = Engine(fleet.servers.engines[job["host_id"]].url)
    facts = await engine.inspect(job["container_id"])
    await engine.close()
    (port,) = facts["NetworkSettings"]["Ports"]["8080/tcp"]
    url = f"http://{LOOPBACK}:{port['HostPort']}{path}"
    async with httpx2.AsyncClient(trust_env=False, timeout=20) as http:
        try:
            (await http.post(url, json=wish)).raise_for_status()
        except httpx2.TransportError:
            return  # it died of it


async def _fails_with(
    fleet: CheckedFleet, job_id: str, code: str, detail: Json, *, within_s: float
) -> None:
    """Return once a job has FAILED; look that it says why."""

    async def failed() -> Json | None:
        job = await fleet.job(job_id)
        return job if job["state"] == "FAILED" else None

    job = await eventually(failed, within_s=within_s, what=f"{job_id} FAILED")
    error = job["error"]
    assert error["code"] == code, job
    assert error["message"]
    stored = error.get("detail") or {}
    known = json.loads(stored) if isinstance(stored, str) else stored
    assert detail.items() <= known.items(), error


async def _restarted(fleet: CheckedFleet, job_id: str, times: int) -> Json:
    """Return a job once it is LOADED after so many restarts."""

    async def again() -> Json | None:
        job = await fleet.job(job_id)
        return job if (job["state"], job.get("restarts")) == ("LOADED", times) else None

    return await eventually(again, within_s=RESTARTED_S, what=f"restart {times} of {job_id}")


async def _lives_again(fleet: CheckedFleet, job_id: str) -> None:
    """Look that a job whose model died can be made anew."""
    await fleet.loaded(job_id)
    await fleet.done("INFER", job_id, input={})
