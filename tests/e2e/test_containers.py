"""What a model may make its container do, and what the engine's answers mean: through all parts."""

import asyncio
import json
import time
import uuid
from typing import Any

import pytest

from tests.e2e.catalog import DIGITS, PROBE, PROBES
from tests.e2e.fleet import Engine, Fleet, Json, User
from tests.support.servers.engines import container_on, image_with, volume_on, volumes_of
from tests.support.waiting import eventually

QUOTA_S = 20.0
"""Seconds from passing the limit to the end of the operation."""

_OOM_CHILD = """
import os, sys
if (child := os.fork()) == 0:
    held = bytes(200 << 20).replace(bytes(1), b"x")
os.waitpid(child, 0)
print('{"ok": true}', flush=True)
sys.exit(int(sys.argv[1]))
"""
_FILL = """
import sys, time
with open(sys.argv[1] + "/filled", "wb") as f:
    f.write(bytes(32 << 20))
time.sleep(1000)
"""
_AT_HOME = """
import json, os, subprocess, tempfile
home = os.environ["HOME"]
with open(f"{home}/run", "w") as f: f.write("#!/bin/sh\\necho ran\\n")
os.chmod(f"{home}/run", 0o755)
shm = os.statvfs("/dev/shm")
for step in range(5): print(f"{step}0%", end="\\r", flush=True)
print(json.dumps({"ran": subprocess.check_output([f"{home}/run"]).decode(),
                  "shm": shm.f_blocks * shm.f_frsize}))
"""


def detail(view: Json) -> Json:
    """Return the detail of an operation's error; free JSON is stored as text."""
    stored = view["error"].get("detail") or "{}"
    found: Json = json.loads(stored) if isinstance(stored, str) else stored
    return found


async def batch(user: User, script: str, *arguments: str, **spec: Any) -> Json:
    """Run a script as a batch, and return the operation at its end."""
    name = f"batch-{uuid.uuid4().hex[:8]}"
    fields = {"image": PROBE, "profile": "batch", "host_labels": {"name": "h1"}}
    await user.put_model(name, **fields, command=["python3", "-c", script, *arguments], **spec)
    return await user.do("TEMP", user.job_id(), model=name)


async def test_a_child_that_was_killed_for_memory_costs_no_result(user: User) -> None:
    view = await batch(user, _OOM_CHILD, "0", resources={"memory": "64m"})
    assert view["state"] == "SUCCEEDED", view
    assert await user.result(view["operation_id"]) == {"ok": True}


async def test_a_child_that_was_killed_for_memory_hides_no_exit_code(user: User) -> None:
    view = await batch(user, _OOM_CHILD, "3", resources={"memory": "64m"})
    assert (view["state"], view["error"]["code"]) == ("FAILED", "exited")
    assert {"exit_code": 3, "oom_killed": True}.items() <= detail(view).items()


@pytest.mark.parametrize("where", ["root", "volume", "result"])
async def test_a_container_that_fills_the_disk_ends_with_the_cause_and_leaves_nothing(
    user: User, fleet: Fleet, engines: dict[str, Engine], where: str
) -> None:
    engine = fleet.engines["h1"]
    before = await asyncio.to_thread(volumes_of, engine)
    spec: dict[str, Any] = {"resources": {"disk": "16m"}}
    if where == "root":
        spec |= {"read_only": False}
    elif where == "volume":
        # A volume begins as a copy of the image's folder, with its mode: /var/tmp is everybody's.
        image = await asyncio.to_thread(image_with, engine, PROBE, "VOLUME /var/tmp")
        spec |= {"image": image}
    else:
        spec |= {"result_file": "/tmp/r.json"}
    folder = {"root": "/var/tmp", "volume": "/var/tmp", "result": "/tmp"}[where]
    name, job_id, since = f"fills-{where}", user.job_id(), time.monotonic()
    fields = {"image": PROBE, "profile": "batch", "host_labels": {"name": "h1"}, **spec}
    await user.put_model(name, **fields, command=["python3", "-c", _FILL, folder])
    view = await user.do("TEMP", job_id, model=name)
    assert (view["state"], view["error"]["code"]) == ("FAILED", "disk_quota_exceeded"), view
    assert detail(view)["limit"] == 16 << 20
    assert view["epoch"] == 1
    assert time.monotonic() - since < QUOTA_S

    async def gone() -> bool:
        left = await asyncio.to_thread(volumes_of, engine)
        return await engines["h1"].containers(job_id) == [] and left <= before

    await eventually(gone)


async def test_a_loaded_job_that_fills_the_disk_fails_with_the_cause(
    user: User, engines: dict[str, Engine]
) -> None:
    script = (
        "import threading, time; import probe\n"
        "fill = lambda: (time.sleep(3), open('/var/tmp/x', 'wb').write(bytes(32 << 20)))\n"
        "threading.Thread(target=fill).start(); probe.main()"
    )
    limits = {"resources": {"disk": "16m"}, "read_only": False, "restart": "on_failure"}
    model = {**PROBES["probe-http"], **limits, "command": ["python3", "-c", script]}
    await user.put_model("fills-loaded", image=PROBE, **model)
    job_id = user.job_id()
    await user.done("DEPLOY_CREATE", job_id, model="fills-loaded")
    await user.done("DEPLOY_LOAD", job_id)

    async def failed() -> Json | None:
        job = await user.job(job_id)
        return job if job["state"] == "FAILED" else None

    job = await eventually(failed, within_s=QUOTA_S + 3)
    assert job["error"]["code"] == "disk_quota_exceeded"
    assert detail(job)["limit"] == 16 << 20
    assert detail(job)["written"] > 16 << 20

    async def gone() -> bool:
        return all([await engine.containers(job_id) == [] for engine in engines.values()])

    await eventually(gone)


async def test_what_a_program_expects_of_its_machine_is_there(user: User) -> None:
    # The digits' image names no home.
    view = await batch_of(user, DIGITS, _AT_HOME, resources={"shm": "128m"})
    assert view["state"] == "SUCCEEDED", view
    assert await user.result(view["operation_id"]) == {"ran": "ran\n", "shm": 128 << 20}


async def batch_of(user: User, image: str, script: str, **spec: Any) -> Json:
    name = f"batch-{uuid.uuid4().hex[:8]}"
    command = ["python3", "-c", script]
    await user.put_model(name, image=image, profile="batch", command=command, **spec)
    return await user.do("TEMP", user.job_id(), model=name)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image", "MyOrg/model:1"),
        ("user", "65534:0"),
        ("read_only", "no"),
        ("dataset_mount", "/tmp"),
        ("dataset_mount", "/dev/shm"),
    ],
)
async def test_what_could_not_run_or_may_not_is_refused_at_the_door(
    user: User, field: str, value: str
) -> None:
    spec = {"image": PROBE, **PROBES["probe-http"], field: value}
    answer = await user.http.put("/v1/models/refused", json=spec)
    assert answer.status_code == 422, answer.text
    assert [fault["pointer"] for fault in answer.json()["errors"]] == [f"/{field}"]


async def test_a_result_file_below_a_file_is_the_models_own_fault(user: User) -> None:
    script = "open('/tmp/file', 'w').close()"
    view = await batch(user, script, result_file="/tmp/file/r.json")
    assert (view["state"], view["error"]["code"]) == ("FAILED", "bad_result"), view
    assert view["epoch"] == 1


async def test_a_mount_on_what_the_image_has_as_a_file_is_tried_once(user: User) -> None:
    name = "mounts-on-a-file"
    spec = {**PROBES["probe-batch"], "dataset_mount": "/etc/passwd"}
    await user.put_model(name, image=PROBE, host_labels={"name": "h1"}, **spec)
    view = await user.do("TEMP", user.job_id(), model=name, dataset="ds-550")
    assert (view["state"], view["error"]["code"]) == ("FAILED", "start_failed"), view
    assert view["epoch"] == 1


async def test_only_a_plain_volume_that_the_host_allows_is_a_dataset(
    user: User, fleet: Fleet
) -> None:
    engine = fleet.engines["h1"]
    host = {"type": "none", "o": "bind", "device": "/"}
    with (
        volume_on(engine, "other"),
        volume_on(engine, "ds-host", **host),
        volume_on(engine, "ds-plain"),
    ):
        codes = {}
        for volume in ("other", "ds-host", "ds-plain"):
            await user.put_dataset(volume, volume=volume)
            name = f"reads-{volume}"
            spec = {**PROBES["probe-batch"], "host_labels": {"name": "h1"}}
            await user.put_model(name, image=PROBE, **spec)
            view = await user.do("TEMP", user.job_id(), model=name, dataset=volume)
            codes[volume] = (view["error"] or {}).get("code")
            if volume == "other":
                assert "MODELYARD_WORKER_ALLOWED_VOLUMES" in view["error"]["message"]
    assert codes == {"other": "dataset_refused", "ds-host": "dataset_refused", "ds-plain": None}


async def test_a_container_of_an_operator_whose_image_has_our_labels_is_left_alone(
    user: User, fleet: Fleet, engines: dict[str, Engine]
) -> None:
    engine, job_id = fleet.engines["h1"], user.job_id()
    ours = {"host": "h1", "job": job_id, "operation": "x", "generation": "1", "spec": "s"}
    labels = [f"LABEL modelyard.{name}={value}" for name, value in ours.items()]
    image = await asyncio.to_thread(image_with, engine, PROBE, *labels)
    with container_on(engine, f"operator-{job_id}", image) as container_id:
        # A TERMINATE takes all the job's containers with it.
        spec = {**PROBES["probe-http"], "host_labels": {"name": "h1"}}
        await user.put_model("labelled", image=PROBE, **spec)
        await user.done("DEPLOY_CREATE", job_id, model="labelled")
        await user.done("TERMINATE", job_id)
        assert (await engines["h1"].inspect(container_id))["State"]["Running"]
