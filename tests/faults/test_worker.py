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
from modelyard.process.crash_points import CRASH_POINTS, VARIABLE
from tests.faults.casualties import HOST, only
from tests.faults.load import Mix
from tests.faults.registry import SlowRegistry
from tests.faults.test_orphans import is_gone, orphan
from tests.faults.yard import Json, Yard, lasts, points
from tests.support.waiting import eventually

KILLED = "Worker killed at every Docker step"
BLOCKED = "Event loop blocked 40 s"
CLOCK = "Clock of one host off by an hour"

POINTS = points("worker")
"""Any load comes to these."""
PULLS = "worker.pull.before_pull"
PULLED = "worker.pull.after_pull"
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
async def test_a_worker_killed_at_a_step_adopts_what_it_left(yard: Yard, point: str) -> None:
    await yard.stop("worker-h1", "worker-h2")
    await yard.launch("worker-h1", **{VARIABLE: point})
    load = await yard.load(Mix(jobs=2, infers=2, temps=2, batches=1))
    ids = await load.run()
    await yard.died_at("worker-h1", point)
    await yard.launch("worker-h1")
    await yard.launch("worker-h2")
    await yard.holds()
    states = await yard.states(ids)
    # An inference under way is not run again by itself, and what came behind it may be refused.
    assert set(states) <= ENDS
    assert states["SUCCEEDED"] >= len(ids) - 4, states


def test_each_point_of_the_worker_is_killed_somewhere() -> None:
    killed = {*POINTS, PULLS, PULLED, *STOP, HALT, DISCARD}
    assert killed == {one for one in CRASH_POINTS if one.startswith("worker.")}


@pytest.mark.fault(KILLED)
async def test_a_worker_killed_when_it_pulls_tries_again(yard: Yard) -> None:
    await yard.put_probe("not-pulled", image="127.0.0.1:1/team/model:1")
    async with _dies_at(yard, PULLS):
        one = await yard.submit("TEMP", yard.job_id(), model="not-pulled", input={})
    end = await yard.ended(one)
    assert (end["state"], end["error"]["code"]) == ("FAILED", "image_pull_failed"), end
    await yard.holds()


@pytest.mark.fault(KILLED)
async def test_a_worker_killed_when_it_has_pulled_makes_one_container_of_what_is_there(
    yard: Yard, registry: SlowRegistry
) -> None:
    job_id = yard.job_id()
    registry.release()
    with registry.served() as image:
        await yard.put_probe("pulled", image=image)
        async with _dies_at(yard, PULLED):
            one = await yard.submit("TEMP", job_id, model="pulled", input={"tag": job_id})
            await yard.gone(WORKER)
            assert not await yard.engines[HOST].labelled(HOST)
        await yard.succeeded([(await yard.ended(one))["_id"]])
        await yard.holds()
        assert len(yard.collector.of(job_id)) == 1
        assert registry.trickles == 1
        await yard.engines[HOST].remove_image(image)


@pytest.mark.fault(KILLED)
@pytest.mark.parametrize("point", STOP)
async def test_a_worker_killed_when_it_has_stopped_a_container_removes_it(
    yard: Yard, point: str
) -> None:
    await yard.put_probe("stops", stop_grace_s=2)
    job_id = yard.job_id()
    async with _dies_at(yard, point):
        await yard.loaded(job_id, model="stops")
        one = await yard.submit("TERMINATE", job_id)
    await yard.succeeded([(await yard.ended(one))["_id"]])
    await yard.holds()
    assert not await yard.engines[HOST].labelled(HOST)


@pytest.mark.fault(KILLED)
async def test_a_worker_killed_when_it_has_stopped_what_no_job_has_any_more_removes_it(
    yard: Yard,
) -> None:
    job_id = yard.job_id()
    async with _dies_at(yard, DISCARD):
        await yard.done("DEPLOY_CREATE", job_id, model="load-http")
        await yard.done("TERMINATE", job_id)
        left = await orphan(yard, job_id, start=True)
        await yard.gone(WORKER)
        (found,) = await yard.engines[HOST].labelled(HOST)
        assert (found.container_id, found.state) == (left, "exited")
    await eventually(lambda: is_gone(yard, left), what=f"the end of {left}")
    await yard.holds()


@pytest.mark.fault(KILLED)
async def test_a_worker_killed_when_it_has_stopped_what_was_half_loaded_loads_it_anew(
    yard: Yard,
) -> None:
    await yard.put_probe("loads-slowly", env={"PROBE_LOAD_SECONDS": "4"})
    job_id = yard.job_id()
    async with _dies_at(yard, HALT):
        await yard.done("DEPLOY_CREATE", job_id, model="loads-slowly")
        load = await yard.submit("DEPLOY_LOAD", job_id)
        await eventually(lambda: _is_loading(yard, load), what="the load")
        answer = await yard.http.post(f"/v1/operations/{load}/cancel")
        assert answer.is_success, answer.text
    assert (await yard.ended(load))["state"] == "CANCELLED"
    await yard.done("DEPLOY_LOAD", job_id)
    await yard.done("INFER", job_id, input={})
    await yard.holds()


async def _is_loading(yard: Yard, operation_id: str) -> bool:
    return (await yard.running_state(operation_id)).get("phase") == "loading"


@asynccontextmanager
async def _dies_at(yard: Yard, point: str) -> AsyncIterator[None]:
    """Have a worker that dies at this point, and all that is placed meanwhile placed there."""
    await yard.stop(WORKER)
    await yard.launch(WORKER, **{VARIABLE: point})
    await yard.online(WORKER)
    async with only(yard, HOST):
        yield
        await yard.died_at(WORKER, point)
    await yard.launch(WORKER)
    await yard.online(WORKER)


@pytest.mark.fault(BLOCKED)
async def test_a_worker_blocked_for_40_s_makes_redelivery_harmless(yard: Yard) -> None:
    """Its event loop is: neither RabbitMQ nor the dispatcher hears it while the process lives."""
    await yard.stop("worker-h1")
    await yard.launch("worker-h1", **{VARIABLE: f"{BLOCKS_AT}:block={BLOCKED_S}"})
    await yard.online("worker-h1")
    log = yard.service("worker-h1").daemon.log
    before = log.stat().st_size
    load = await yard.load(pause_s=0.1)
    loading = asyncio.create_task(load.run())
    await yard.came_to("worker-h1", BLOCKS_AT)
    began = time.monotonic()
    await yard.liveness("h1", "SUSPECT", within_s=BLOCKED_S)
    await yard.liveness("h1", "ONLINE", within_s=2 * BLOCKED_S)
    assert time.monotonic() - began > BLOCKED_S - 2
    ids = await loading
    await yard.holds()
    await yard.succeeded(ids)
    assert b"command.not_new" in log.read_bytes()[before:]


@pytest.mark.fault(CLOCK)
@pytest.mark.parametrize("offset", ["+3600", "-3600"])
async def test_a_host_whose_clock_is_an_hour_off_works_as_the_others(
    yard: Yard, offset: str
) -> None:
    await yard.stop("worker-h2")
    # Monotonic clocks stay true: an hour off is what a host without NTP has, not a faster time.
    await yard.launch(
        "worker-h2", LD_PRELOAD=_faketime(), FAKETIME=offset, FAKETIME_DONT_FAKE_MONOTONIC="1"
    )
    await yard.online("worker-h2")
    await eventually(lambda: _clock_is_off(yard, "worker-h2"), what="a time that is far off")
    await yard.put_probe("on-h2", host_labels={"name": "h2"})
    load = await yard.load(Mix(jobs=4, temps=6))
    ids = await load.run()
    bounds: tuple[Json, ...] = (
        {"queue_timeout_s": 60, "input": {}},
        {"timeout_s": TIGHT_S, "input": {"sleep": TIGHT_S - MARGIN_S}},
    )
    bounded = [await yard.submit("TEMP", yard.job_id(), model="on-h2", **one) for one in bounds]
    await lasts(20)  # longer than a host may be silent
    assert (await yard.host("h2"))["liveness"] == "ONLINE"
    await yard.holds()
    await yard.succeeded([*ids, *bounded])
    on_it = {"host_id": "h2", "_id": {"$in": [*ids, *bounded]}}
    assert await yard.database.count("operations", on_it) > len(bounded)


async def _clock_is_off(yard: Yard, name: str) -> bool:
    """Look at the time that a process wrote into its log last; it does so once it is online."""
    stamps = re.findall(r"20\d\d-\d\d-\d\dT[\d:.]+Z", yard.service(name).daemon.log_end())
    return abs(datetime.fromisoformat(stamps[-1]).timestamp() - time.time()) > 3_000


def _faketime() -> str:
    found = sorted(Path("/usr/lib").glob(f"*/faketime/{FAKETIME}"))
    if not found:
        raise CannotProvide("A false clock takes libfaketime: apt-get install faketime")
    return str(found[0])
