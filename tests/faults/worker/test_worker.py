"""Faults of workers: killed at every step, blocked, and with a clock of their own."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import pytest

from deploy.local.errors import CannotProvide
from modelyard.process.crash_points import VARIABLE
from tests.faults.harness.casualties import HOST, only
from tests.faults.harness.checked_fleet import CheckedFleet, Json, lasts, points
from tests.faults.harness.load import Mix
from tests.faults.harness.registry import SlowRegistry
from tests.faults.worker.test_orphans import is_gone, orphan
from tests.support.waiting import eventually

KILLED = "Worker killed at every Docker step"
BLOCKED = "Event loop blocked 40 s"
CLOCK = "Clock of one host off by an hour"

POINTS = points("worker")
"""Any load comes to these."""
PULLS = "worker.pull.before_pull"
PULLED = "worker.pull.after_pull"
PIECE = "worker.transfer.after_piece"
HALT = "worker.stop.after_halt"
STOP = [one for one in points("worker.stop") if one != HALT]
DISCARD = "worker.discard.after_stop"
WORKER = f"worker-{HOST}"
FAKETIME = "libfaketimeMT.so.1"
BLOCKED_S = 40
TIGHT_S = 20
MARGIN_S = 15
"""Of it, for making and removing a container on a busy machine."""
BLOCKS_AT = "worker.after_accept"
"""What it has accepted is not settled: RabbitMQ delivers it again."""
ENDS = {"SUCCEEDED", "FAILED", "REJECTED"}
pytestmark = pytest.mark.faults


@pytest.mark.fault(KILLED)
@pytest.mark.parametrize("point", POINTS)
async def test_a_worker_killed_at_a_step_adopts_what_it_left(
    fleet: CheckedFleet, point: str
) -> None:
    await fleet.stop("worker-h1", "worker-h2")
    await fleet.launch("worker-h1", **{VARIABLE: point})
    load = await fleet.load(Mix(jobs=2, infers=2, temps=2, batches=1))
    ids = await load.run()
    await fleet.died_at("worker-h1", point)
    await fleet.launch("worker-h1")
    await fleet.launch("worker-h2")
    await fleet.holds()
    states = await fleet.states(ids)
    # An inference under way is not run again by itself, and what came behind it may be refused.
    assert set(states) <= ENDS
    assert states["SUCCEEDED"] >= len(ids) - 4, states


@pytest.mark.fault(KILLED)
async def test_a_worker_killed_in_the_middle_of_a_large_result_sends_all_of_the_next_one(
    fleet: CheckedFleet,
) -> None:
    await fleet.put_probe("large")
    async with _dies_at(fleet, PIECE):
        one = await fleet.submit("TEMP", fleet.job_id(), model="large", input={"bytes": 3 << 19})
        await fleet.gone(WORKER)
    ended = await fleet.ended(one)
    await fleet.succeeded([ended["_id"]])
    assert ended["epoch"] > 1
    answer = await fleet.http.get(f"/v1/operations/{one}/result")
    assert len(answer.json()["blob"]) == 3 << 19
    await fleet.holds()


@pytest.mark.fault(KILLED)
async def test_a_worker_killed_when_it_pulls_tries_again(fleet: CheckedFleet) -> None:
    await fleet.put_probe("not-pulled", image="127.0.0.1:1/team/model:1")
    async with _dies_at(fleet, PULLS):
        one = await fleet.submit("TEMP", fleet.job_id(), model="not-pulled", input={})
    end = await fleet.ended(one)
    assert (end["state"], end["error"]["code"]) == ("FAILED", "image_pull_failed"), end
    await fleet.holds()


@pytest.mark.fault(KILLED)
async def test_a_worker_killed_when_it_has_pulled_makes_one_container_of_what_is_there(
    fleet: CheckedFleet, registry: SlowRegistry
) -> None:
    job_id = fleet.job_id()
    registry.release()
    with registry.served() as image:
        await fleet.put_probe("pulled", image=image)
        async with _dies_at(fleet, PULLED):
            one = await fleet.submit("TEMP", job_id, model="pulled", input={"tag": job_id})
            await fleet.gone(WORKER)
            assert not await fleet.engines[HOST].labelled(HOST)
        await fleet.succeeded([(await fleet.ended(one))["_id"]])
        await fleet.holds()
        assert len(fleet.collector.of(job_id)) == 1
        assert registry.trickles == 1
        await fleet.engines[HOST].remove_image(image)


@pytest.mark.fault(KILLED)
@pytest.mark.parametrize("point", STOP)
async def test_a_worker_killed_when_it_has_stopped_a_container_removes_it(
    fleet: CheckedFleet, point: str
) -> None:
    await fleet.put_probe("stops", stop_grace_s=2)
    job_id = fleet.job_id()
    async with _dies_at(fleet, point):
        await fleet.loaded(job_id, model="stops")
        one = await fleet.submit("TERMINATE", job_id)
    await fleet.succeeded([(await fleet.ended(one))["_id"]])
    await fleet.holds()
    assert not await fleet.engines[HOST].labelled(HOST)


@pytest.mark.fault(KILLED)
async def test_a_worker_killed_when_it_has_stopped_what_no_job_has_any_more_removes_it(
    fleet: CheckedFleet,
) -> None:
    job_id = fleet.job_id()
    async with _dies_at(fleet, DISCARD):
        await fleet.done("DEPLOY_CREATE", job_id, model="load-http")
        await fleet.done("TERMINATE", job_id)
        left = await orphan(fleet, job_id, start=True)
        await fleet.gone(WORKER)
        (found,) = await fleet.engines[HOST].labelled(HOST)
        assert (found.container_id, found.state) == (left, "exited")
    await eventually(lambda: is_gone(fleet, left), what=f"the end of {left}")
    await fleet.holds()


@pytest.mark.fault(KILLED)
async def test_a_worker_killed_when_it_has_stopped_what_was_half_loaded_loads_it_anew(
    fleet: CheckedFleet,
) -> None:
    await fleet.put_probe("loads-slowly", env={"PROBE_LOAD_SECONDS": "4"})
    job_id = fleet.job_id()
    async with _dies_at(fleet, HALT):
        await fleet.done("DEPLOY_CREATE", job_id, model="loads-slowly")
        load = await fleet.submit("DEPLOY_LOAD", job_id)
        await eventually(lambda: _is_loading(fleet, load), what="the load")
        answer = await fleet.http.post(f"/v1/operations/{load}/cancel")
        assert answer.is_success, answer.text
    assert (await fleet.ended(load))["state"] == "CANCELLED"
    await fleet.done("DEPLOY_LOAD", job_id)
    await fleet.done("INFER", job_id, input={})
    await fleet.holds()


async def _is_loading(fleet: CheckedFleet, operation_id: str) -> bool:
    return (await fleet.running_state(operation_id)).get("phase") == "loading"


@asynccontextmanager
async def _dies_at(fleet: CheckedFleet, point: str) -> AsyncIterator[None]:
    """Have a worker that dies at this point, and all that is placed meanwhile placed there."""
    await fleet.stop(WORKER)
    await fleet.launch(WORKER, **{VARIABLE: point})
    await fleet.online(WORKER)
    async with only(fleet, HOST):
        yield
        await fleet.died_at(WORKER, point)
    await fleet.launch(WORKER)
    await fleet.online(WORKER)


@pytest.mark.fault(BLOCKED)
async def test_a_worker_blocked_for_40_s_makes_redelivery_harmless(fleet: CheckedFleet) -> None:
    """Its event loop is: neither RabbitMQ nor the dispatcher hears it while the process lives."""
    await fleet.stop("worker-h1")
    await fleet.launch("worker-h1", **{VARIABLE: f"{BLOCKS_AT}:block={BLOCKED_S}"})
    await fleet.online("worker-h1")
    log = fleet.service("worker-h1").daemon.log
    before = log.stat().st_size
    load = await fleet.load(pause_s=0.1)
    loading = asyncio.create_task(load.run())
    await fleet.came_to("worker-h1", BLOCKS_AT)
    began = time.monotonic()
    await fleet.liveness("h1", "SUSPECT", within_s=BLOCKED_S)
    await fleet.liveness("h1", "ONLINE", within_s=2 * BLOCKED_S)
    assert time.monotonic() - began > BLOCKED_S - 2
    ids = await loading
    await fleet.holds()
    await fleet.succeeded(ids)
    assert b"command.not_new" in log.read_bytes()[before:]


@pytest.mark.fault(CLOCK)
@pytest.mark.parametrize("offset", ["+3600", "-3600"])
async def test_a_host_whose_clock_is_an_hour_off_works_as_the_others(
    fleet: CheckedFleet, offset: str
) -> None:
    await fleet.stop("worker-h2")
    # Monotonic clocks stay true: an hour off is what a host without NTP has, not a faster time.
    await fleet.launch(
        "worker-h2", LD_PRELOAD=_faketime(), FAKETIME=offset, FAKETIME_DONT_FAKE_MONOTONIC="1"
    )
    await fleet.online("worker-h2")
    await eventually(lambda: _clock_is_off(fleet, "worker-h2"), what="a time that is far off")
    await fleet.put_probe("on-h2", host_labels={"name": "h2"})
    load = await fleet.load(Mix(jobs=4, temps=6))
    ids = await load.run()
    bounds: tuple[Json, ...] = (
        {"queue_timeout_s": 60, "input": {}},
        {"timeout_s": TIGHT_S, "input": {"sleep": TIGHT_S - MARGIN_S}},
    )
    bounded = [await fleet.submit("TEMP", fleet.job_id(), model="on-h2", **one) for one in bounds]
    await lasts(20)  # longer than a host may be silent
    assert (await fleet.host("h2"))["liveness"] == "ONLINE"
    await fleet.holds()
    await fleet.succeeded([*ids, *bounded])
    on_it = {"host_id": "h2", "_id": {"$in": [*ids, *bounded]}}
    assert await fleet.database.count("operations", on_it) > len(bounded)


async def _clock_is_off(fleet: CheckedFleet, name: str) -> bool:
    """Look at the time that a process wrote into its log last; it does so once it is online."""
    stamps = re.findall(r"20\d\d-\d\d-\d\dT[\d:.]+Z", fleet.service(name).daemon.log_end())
    return abs(datetime.fromisoformat(stamps[-1]).timestamp() - time.time()) > 3_000


def _faketime() -> str:
    found = sorted(Path("/usr/lib").glob(f"*/faketime/{FAKETIME}"))
    if not found:
        raise CannotProvide("A false clock takes libfaketime: apt-get install faketime")
    return str(found[0])
