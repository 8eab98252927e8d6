"""A dispatcher killed between two steps of what it does only when something went wrong before."""

import asyncio
import uuid

import pytest

from modelyard.contract.ids import operation_id_for_key
from modelyard.contract.topology import JOBS_QUEUE
from modelyard.process.crash_points import VARIABLE
from tests.e2e.fleet import Json
from tests.faults.dispatcher.test_dispatcher import KILLED
from tests.faults.harness.casualties import HOST, admit, only, tagged
from tests.faults.harness.checked_fleet import DISPATCHERS, CheckedFleet, lasts, points
from tests.faults.harness.load import Request
from tests.faults.harness.raw_channel import open_raw_channel
from tests.support.waiting import eventually

WORKER = f"worker-{HOST}"
CANCELLED = 4
"""Several, for each has only its rest of less than a second to be cancelled in."""
TIMEOUT_S = 5
QUEUE_TIMEOUT_S = 10
"""Longer than a dispatcher takes to start and reserve."""
pytestmark = [pytest.mark.faults, pytest.mark.fault(KILLED)]

AGAIN = points("dispatcher.again")
BOOT = points("dispatcher.boot", "dispatcher.found_down")
RECOVERY = points("dispatcher.recovery")
CANCEL = points("dispatcher.cancel")
DEADLINES = points("dispatcher.deadlines")
DEAD = points("dispatcher.dead")
HOLD = points("dispatcher.hold")
EXPIRE = "dispatcher.sweep.after_expire"
SUSPECT = "dispatcher.sweep.after_suspect"
PUBLISH = ["dispatcher.sweep.after_look", "dispatcher.sweep.after_mark"]
TAKE_BACK = "dispatcher.sweep.after_take_back"
RESERVES = "dispatcher.after_reserve"
UNLOAD = "dispatcher.sweep.after_unload"
HOLDS = "dispatcher.after_hold"


REPAIRED = {*AGAIN, *BOOT, *RECOVERY, *CANCEL, *DEADLINES, *DEAD, *HOLD}
REPAIRED |= {EXPIRE, SUSPECT, *PUBLISH, TAKE_BACK, UNLOAD}
"""Where the dispatcher is killed here."""


@pytest.mark.parametrize("point", AGAIN)
async def test_an_attempt_that_is_made_again_leaks_nothing(fleet: CheckedFleet, point: str) -> None:
    await fleet.put_probe("not-pulled", image="127.0.0.1:1/team/model:1")
    async with fleet.dispatcher_dies_at(point):
        one = await fleet.submit("TEMP", fleet.job_id(), model="not-pulled", input={})
    end = await fleet.ended(one)
    assert (end["state"], end["error"]["code"]) == ("FAILED", "image_pull_failed"), end
    assert end["epoch"] > 1
    await fleet.holds()


@pytest.mark.parametrize("point", BOOT)
async def test_what_a_worker_finds_when_it_boots_is_repaired(
    fleet: CheckedFleet, point: str
) -> None:
    lives, dies = fleet.job_id(), fleet.job_id()
    async with only(fleet, HOST):
        await fleet.loaded(lives)
        killed = await fleet.loaded(dies)
        temp = await tagged(fleet, "TEMP", fleet.job_id(), sleep=5, model="load-http")
        await fleet.running(temp)
        await fleet.running_state(temp)
    await fleet.kill(WORKER)
    await fleet.engines[HOST].kill(killed["container_id"])
    async with fleet.dispatcher_dies_at(point):
        await fleet.launch(WORKER)
    await fleet.succeeded([(await fleet.ended(temp))["_id"]])
    await fleet.holds()
    assert (await fleet.job(dies))["state"] == "FAILED"
    await fleet.done("INFER", lives, input={})
    held = (await fleet.host(HOST))["reservations"]
    assert [one["job_id"] for one in held] == [lives]


@pytest.mark.parametrize("point", RECOVERY)
async def test_a_job_is_brought_back_once(fleet: CheckedFleet, point: str) -> None:
    await fleet.put_probe("comes-up", restart="on_failure", max_restarts=2)
    job_id = fleet.job_id()
    job = await fleet.loaded(job_id, model="comes-up")
    async with fleet.dispatcher_dies_at(point):
        await fleet.engines[job["host_id"]].kill(job["container_id"])

    async def is_back() -> bool:
        now = await fleet.job(job_id)
        return now["state"] == "LOADED" and not now.get("recovery")

    await eventually(is_back, within_s=30, what="the job back")
    await fleet.done("INFER", job_id, input={})
    await fleet.holds()
    ours = await fleet.database.all("operations", {"job_id": job_id, "source": "system"})
    assert [(one["verb"], one["state"]) for one in ours] == [("DEPLOY_LOAD", "SUCCEEDED")]


@pytest.mark.parametrize("point", CANCEL)
async def test_a_cancel_of_what_kept_its_place_frees_it(fleet: CheckedFleet, point: str) -> None:
    async with only(fleet, HOST):
        temps = [
            await tagged(fleet, "TEMP", fleet.job_id(), sleep=60, model="load-http")
            for _ in range(CANCELLED)
        ]
        for temp in temps:
            await fleet.running(temp)
            await fleet.running_state(temp)
    await fleet.kill(WORKER)
    async with asyncio.TaskGroup() as cancels, fleet.dispatcher_dies_at(point):
        await fleet.launch(WORKER)
        for temp in temps:
            cancels.create_task(_cancel_queued(fleet, temp))
    await fleet.holds()
    assert await fleet.states(temps) == {"CANCELLED": CANCELLED}
    assert not (await fleet.host(HOST))["reservations"]


async def _cancel_queued(fleet: CheckedFleet, operation_id: str) -> None:
    """Cancel an operation while it rests after an attempt that was interrupted."""

    async def rests() -> bool:
        return (await fleet.states([operation_id]))["QUEUED"] == 1

    await eventually(rests, within_s=60, what=f"{operation_id} QUEUED")
    answer = await fleet.http.post(f"/v1/operations/{operation_id}/cancel")
    assert answer.is_success, answer.text


@pytest.mark.parametrize("point", DEADLINES)
async def test_what_a_frozen_worker_does_not_end_is_ended_once(
    fleet: CheckedFleet, point: str
) -> None:
    async with only(fleet, HOST):
        temp = await tagged(
            fleet, "TEMP", fleet.job_id(), sleep=60, model="load-http", timeout_s=TIMEOUT_S
        )
        await fleet.running(temp)
        await fleet.running_state(temp)
    with fleet.frozen(WORKER):
        async with fleet.dispatcher_dies_at(point):
            pass
        assert (await fleet.ended(temp))["state"] == "TIMED_OUT"
    await fleet.holds()
    assert (await fleet.ended(temp))["state"] == "TIMED_OUT"


@pytest.mark.parametrize("point", DEAD)
async def test_a_request_that_is_a_dead_letter_is_rejected(fleet: CheckedFleet, point: str) -> None:
    key = uuid.uuid4().hex
    body = {"job_id": fleet.job_id(), "operation_type": "TEMP", "model": "load-http", "input": {}}
    await fleet.stop(*DISPATCHERS)
    await fleet.doors.submit(Request(key, body), by_amqp=True)
    await _refuse_one(fleet)
    async with fleet.dispatcher_dies_at(point):
        pass
    one = await fleet.ended(operation_id_for_key(key))
    assert (one["state"], one["error"]["code"]) == ("REJECTED", "dead_lettered"), one
    await fleet.holds()


async def _refuse_one(fleet: CheckedFleet) -> None:
    """Refuse a request as a reader would that can make nothing of it."""
    async with open_raw_channel(fleet.processes.amqp_url) as raw:
        queue = await raw.channel.get_queue(JOBS_QUEUE.name, ensure=False)
        async with queue.iterator() as messages:
            message = await anext(messages)
            await message.reject(requeue=False)


@pytest.mark.parametrize("point", HOLD)
async def test_a_terminate_of_what_never_was_succeeds(fleet: CheckedFleet, point: str) -> None:
    async with fleet.dispatcher_dies_at(point):
        one = await fleet.submit("TERMINATE", fleet.job_id())
    await fleet.succeeded([(await fleet.ended(one))["_id"]])
    await fleet.holds()


async def test_what_waited_for_too_long_expires_once(fleet: CheckedFleet) -> None:
    await fleet.put_probe("on-h1", host_labels={"name": HOST})
    await admit(fleet, HOST, "cordon")
    job_id = fleet.job_id()
    async with fleet.dispatcher_dies_at(EXPIRE):
        late = await fleet.submit("TEMP", job_id, model="on-h1", input={}, queue_timeout_s=1)
    await admit(fleet, HOST, "uncordon")
    assert (await fleet.ended(late))["state"] == "EXPIRED"
    await fleet.done("TEMP", job_id, model="on-h1", input={})
    await fleet.holds()


async def test_a_silent_host_stays_suspect_until_it_is_heard(fleet: CheckedFleet) -> None:
    with fleet.frozen(WORKER):
        async with fleet.dispatcher_dies_at(SUSPECT):
            pass
        assert (await fleet.host(HOST))["liveness"] == "SUSPECT"
        elsewhere = await fleet.done("TEMP", fleet.job_id(), model="load-http", input={})
        assert elsewhere["host_id"] != HOST
    await fleet.liveness(HOST, "ONLINE")
    await fleet.holds()


@pytest.mark.parametrize("point", PUBLISH)
async def test_a_command_that_nobody_took_is_published_again_and_runs_once(
    fleet: CheckedFleet, point: str
) -> None:
    async with only(fleet, HOST):
        with fleet.frozen(WORKER):
            async with fleet.dispatcher_dies_at(point):
                temp = await tagged(fleet, "TEMP", fleet.job_id(), sleep=0, model="load-http")
        end = await fleet.ended(temp)
    assert (end["state"], end["epoch"]) == ("SUCCEEDED", 1), end
    assert len(fleet.collector.of(temp)) == 1
    await fleet.holds()


async def test_a_reservation_of_what_never_began_is_taken_back(fleet: CheckedFleet) -> None:
    """Whoever reserved dies, and what it reserved for expires before anyone goes on with it."""
    await fleet.stop(*DISPATCHERS)
    await fleet.launch("dispatcher", **{VARIABLE: RESERVES})
    job_id = fleet.job_id()
    async with only(fleet, HOST):
        late = await fleet.submit(
            "TEMP", job_id, model="load-http", input={}, queue_timeout_s=QUEUE_TIMEOUT_S
        )
        await fleet.died_at("dispatcher", RESERVES)
    assert [one["job_id"] for one in (await fleet.host(HOST))["reservations"]] == [job_id]
    await lasts(QUEUE_TIMEOUT_S)
    async with fleet.dispatcher_dies_at(TAKE_BACK):
        pass
    assert (await fleet.ended(late))["state"] == "EXPIRED"
    await fleet.holds()
    assert not (await fleet.host(HOST))["reservations"]


async def test_memory_that_is_held_for_a_load_that_never_began_is_freed(
    fleet: CheckedFleet,
) -> None:
    """Whoever held it dies, and the LOAD expires before anyone goes on with it."""
    job_id = fleet.job_id()
    await fleet.done("DEPLOY_CREATE", job_id, model="load-http")
    host_id = (await fleet.job(job_id))["host_id"]

    async def held() -> Json:
        (one,) = (await fleet.host(host_id))["reservations"]
        found: Json = one["resident"]
        return found

    await fleet.stop(*DISPATCHERS)
    await fleet.launch("dispatcher", **{VARIABLE: HOLDS})
    late = await fleet.submit("DEPLOY_LOAD", job_id, queue_timeout_s=QUEUE_TIMEOUT_S)
    await fleet.died_at("dispatcher", HOLDS)
    assert sum((await held())["devices"].values()) == 1 << 30
    await lasts(QUEUE_TIMEOUT_S)
    async with fleet.dispatcher_dies_at(UNLOAD):
        pass
    assert (await fleet.ended(late))["state"] == "EXPIRED"

    async def freed() -> bool:
        return await held() is None

    await eventually(freed, within_s=30, what="the end of what is held")
    await fleet.holds()
    await fleet.done("DEPLOY_LOAD", job_id)
    assert await held()
    await fleet.holds()
