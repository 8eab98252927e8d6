"""Faults of containers and images: a code for each, soon, and nothing left."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.e2e.catalog import PROBE
from tests.faults.harness.checked_fleet import CheckedFleet, Json
from tests.faults.servers.test_dockerd import failed

CONTAINER = "Container: OOM, exit code, killed from outside, never ready"
IMAGE = "Image missing, registry refuses, pull slower than 30 minutes"
CHILD = "Child killed by OOM, parent ends well or with its own code"
TAKEN = "Name or port taken; disk full on host, broker or database"
TOLD_S = 10.0
pytestmark = pytest.mark.faults


async def ended_soon(fleet: CheckedFleet, operation_id: str, since: float) -> Json:
    """Return the end of an operation, which has to be known ten seconds after the fact."""
    one = await fleet.ended(operation_id, within_s=30)
    assert time.monotonic() - since < TOLD_S
    return one


@pytest.mark.fault(CONTAINER)
@pytest.mark.parametrize(
    ("wish", "code", "detail"),
    [
        ({"exit": 7}, "exited", {"exit_code": 7}),
        ({"hold_bytes": 256 << 20}, "oom_killed", {}),
    ],
)
async def test_a_container_that_dies_of_an_inference_says_how(
    fleet: CheckedFleet, wish: Json, code: str, detail: Json
) -> None:
    await fleet.put_probe("small", resources={"memory": "96m"})
    job_id = fleet.job_id()
    await fleet.loaded(job_id, model="small")
    since = time.monotonic()
    one = await ended_soon(fleet, await fleet.submit("INFER", job_id, input=wish), since)
    assert (one["state"], one["error"]["code"]) == ("FAILED", code)
    assert detail.items() <= _detail(one).items()
    assert (await fleet.job(job_id))["state"] == "FAILED"
    await fleet.holds()


@pytest.mark.fault(CONTAINER)
async def test_a_container_killed_during_an_inference_ends_it(fleet: CheckedFleet) -> None:
    job_id = fleet.job_id()
    job = await fleet.loaded(job_id)
    operation_id = await fleet.submit("INFER", job_id, input=_tagged(job_id, sleep=60))
    await fleet.running(job_id)
    await fleet.engines[job["host_id"]].kill(job["container_id"])
    one = await ended_soon(fleet, operation_id, time.monotonic())
    assert (one["state"], one["error"]["code"]) == ("FAILED", "exited")
    assert _detail(one)["exit_code"] == 137
    await fleet.holds()


@pytest.mark.fault(CONTAINER)
async def test_a_container_killed_while_nobody_asks_it_fails_its_job(fleet: CheckedFleet) -> None:
    job_id = fleet.job_id()
    job = await fleet.loaded(job_id)
    await fleet.engines[job["host_id"]].kill(job["container_id"])
    await failed(fleet, job_id, within_s=20)
    await fleet.holds()


@pytest.mark.fault(CONTAINER)
async def test_a_model_that_never_gets_ready_fails_at_its_deadline(fleet: CheckedFleet) -> None:
    await fleet.put_probe("never", env={"PROBE_READY_SECONDS": "inf"}, load_timeout_s=2)
    job_id = fleet.job_id()
    await fleet.done("DEPLOY_CREATE", job_id, model="never")
    since = time.monotonic() + 2
    one = await ended_soon(fleet, await fleet.submit("DEPLOY_LOAD", job_id), since)
    assert (one["state"], one["error"]["code"]) == ("FAILED", "not_ready")
    await fleet.holds()


_CHILD_DIES = """
import os, sys
if (child := os.fork()) == 0:
    held = bytes(200 << 20).replace(bytes(1), b"x")
os.waitpid(child, 0)
print('{"ok": true}', flush=True)
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.fault(CHILD)
@pytest.mark.parametrize(("exit_code", "state"), [(0, "SUCCEEDED"), (3, "FAILED")])
async def test_a_child_that_is_killed_for_memory_leaves_its_parent_its_own_end(
    fleet: CheckedFleet, exit_code: int, state: str
) -> None:
    command = ["python3", "-c", _CHILD_DIES, str(exit_code)]
    fields: Json = {"image": PROBE, "profile": "batch", "command": command}
    await fleet.put_model(f"child-{exit_code}", **fields, resources={"memory": "64m"})
    one = await fleet.do("TEMP", fleet.job_id(), model=f"child-{exit_code}")
    assert one["state"] == state, one
    if exit_code:
        assert one["error"]["code"] == "exited"
        assert {"exit_code": 3, "oom_killed": True}.items() <= _detail(one).items()
    await fleet.holds()


class _Registry(BaseHTTPRequestHandler):
    """A registry without images: `team/secret` is refused, everything else is unknown."""

    def do_GET(self) -> None:
        if self.path == "/v2/":
            self._answer(200, "{}")
        elif "/team/secret/" in self.path:
            self._answer(403, '{"errors":[{"code":"DENIED","message":"no"}]}')
        else:
            self._answer(404, '{"errors":[{"code":"MANIFEST_UNKNOWN","message":"unknown"}]}')

    do_HEAD = do_GET  # noqa: N815 - http.server looks for this name

    def _answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body.encode())

    def log_message(self, *args: object) -> None:
        del args


@pytest.fixture
def registry() -> Iterator[str]:
    """Serve a registry; engines speak plain HTTP to loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.fault(IMAGE)
@pytest.mark.parametrize(
    ("image", "code", "attempts"),
    [
        ("{registry}/team/nothing:1", "image_not_found", 1),
        ("{registry}/team/secret:1", "image_denied", 1),
        ("127.0.0.1:1/team/away:1", "image_pull_failed", 3),
    ],
)
async def test_an_image_that_cannot_be_had_has_its_code_and_its_end(
    fleet: CheckedFleet, registry: str, image: str, code: str, attempts: int
) -> None:
    await fleet.put_probe("no-image", image=image.format(registry=registry))
    neighbour = await fleet.submit("TEMP", fleet.job_id(), model="load-http", input={})
    one = await fleet.do("DEPLOY_CREATE", fleet.job_id(), model="no-image")
    assert (one["state"], one["error"]["code"], one["epoch"]) == ("FAILED", code, attempts), one
    assert (await fleet.ended(neighbour))["state"] == "SUCCEEDED"
    await fleet.holds()


@pytest.mark.fault(TAKEN)
async def test_a_name_that_somebody_else_has_taken_is_a_clear_failure(fleet: CheckedFleet) -> None:
    job_id = fleet.job_id()
    foreign = {
        host_id: await engine.create(f"modelyard-{job_id}-1", {"Image": PROBE}, start=False)
        for host_id, engine in fleet.engines.items()
    }
    one = await fleet.do("DEPLOY_CREATE", job_id, model="load-http")
    assert (one["state"], one["error"]["code"]) == ("FAILED", "create_failed")
    assert "name" in one["error"]["message"].lower() + str(_detail(one)).lower()
    for host_id, container_id in foreign.items():
        assert container_id in {one["Id"] for one in await fleet.engines[host_id].containers()}
    await fleet.holds()
    for host_id, container_id in foreign.items():
        await fleet.engines[host_id].remove(container_id)


def _tagged(tag: str, **wishes: object) -> Json:
    return {"tag": tag, **wishes}


def _detail(one: Json) -> Json:
    """Return the detail of an operation's error; free JSON is stored as text."""
    stored = one["error"].get("detail") or "{}"
    detail: Json = json.loads(stored) if isinstance(stored, str) else stored
    return detail
