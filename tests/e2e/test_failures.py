"""What goes wrong inside of a container, and how a client learns of it."""

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.e2e.catalog import PROBE, PROBES
from tests.e2e.fleet import Engine, Json, User
from tests.support.waiting import eventually


async def put_probe(user: User, name: str, base: str = "probe-http", **changes: object) -> None:
    """Put a variant of a probe into the catalog."""
    await user.put_model(name, **{"image": PROBE, **PROBES[base], **changes})


async def nothing_is_left(user: User, engines: dict[str, Engine], job_id: str) -> None:
    """Look that a job has neither container nor reservation."""
    for engine in engines.values():
        assert await engine.containers(job_id) == []
    hosts = (await user.http.get("/v1/hosts")).json()["hosts"]
    assert all(job_id not in host["jobs"] for host in hosts)


def failure(view: Json) -> tuple[str, str]:
    return view["state"], view["error"]["code"]


async def test_a_model_that_never_gets_ready_fails_at_its_deadline(
    user: User, engines: dict[str, Engine]
) -> None:
    await put_probe(user, "never-ready", env={"PROBE_READY_SECONDS": "inf"}, load_timeout_s=1.5)
    job_id = user.job_id()
    await user.done("DEPLOY_CREATE", job_id, model="never-ready")
    assert failure(await user.do("DEPLOY_LOAD", job_id)) == ("FAILED", "not_ready")
    job = await user.job(job_id)
    assert (job["state"], job["error"]["code"]) == ("FAILED", "not_ready")
    await nothing_is_left(user, engines, job_id)


async def test_a_container_that_never_answers_fails_the_create(
    user: User, engines: dict[str, Engine]
) -> None:
    await put_probe(user, "never-alive", env={"PROBE_ALIVE_SECONDS": "inf"}, start_timeout_s=1.5)
    job_id = user.job_id()
    assert failure(await user.do("DEPLOY_CREATE", job_id, model="never-alive")) == (
        "FAILED",
        "not_ready",
    )
    await nothing_is_left(user, engines, job_id)


async def test_a_container_that_dies_while_loading_says_how(
    user: User, engines: dict[str, Engine]
) -> None:
    await put_probe(user, "dies-loading", env={"PROBE_LOAD_EXIT": "7"})
    job_id = user.job_id()
    await user.done("DEPLOY_CREATE", job_id, model="dies-loading")
    view = await user.do("DEPLOY_LOAD", job_id)
    assert failure(view) == ("FAILED", "exited")
    assert view["error"]["detail"]["exit_code"] == 7
    assert (await user.job(job_id))["state"] == "FAILED"
    await nothing_is_left(user, engines, job_id)


async def test_a_container_that_dies_at_start_says_how(
    user: User, engines: dict[str, Engine]
) -> None:
    await put_probe(user, "dies-starting", env={"PROBE_START_EXIT": "3"})
    job_id = user.job_id()
    view = await user.do("DEPLOY_CREATE", job_id, model="dies-starting")
    assert failure(view) == ("FAILED", "exited")
    assert view["error"]["detail"]["exit_code"] == 3
    await nothing_is_left(user, engines, job_id)


async def test_a_job_that_failed_can_be_created_again(user: User) -> None:
    await put_probe(user, "dies-starting", env={"PROBE_START_EXIT": "3"})
    job_id = user.job_id()
    await user.do("DEPLOY_CREATE", job_id, model="dies-starting")
    created = await user.done("DEPLOY_CREATE", job_id, model="probe-http")
    assert created["generation"] == 2
    await user.done("TERMINATE", job_id)


async def test_a_container_killed_from_outside_is_found_missing(
    user: User, engines: dict[str, Engine]
) -> None:
    job_id = user.job_id()
    created = await user.done("DEPLOY_CREATE", job_id, model="probe-http")
    await user.done("DEPLOY_LOAD", job_id)
    await engines[created["host_id"]].kill(created["container_id"])
    view = await user.do("INFER", job_id, input={})
    # Whoever comes first: the inference, or the look at what Docker's event told of.
    assert failure(view) in {
        ("FAILED", "exited"),
        ("FAILED", "container_missing"),
        ("REJECTED", "invalid_job_state"),
    }
    assert (await user.job(job_id))["state"] == "FAILED"

    async def removed() -> bool:
        return not any([await engine.containers(job_id) for engine in engines.values()])

    await eventually(removed, what="the dead container is removed")
    await nothing_is_left(user, engines, job_id)


async def test_an_inference_that_the_model_refuses_leaves_the_job_loaded(user: User) -> None:
    job_id = user.job_id()
    await user.done("DEPLOY_CREATE", job_id, model="probe-http")
    await user.done("DEPLOY_LOAD", job_id)
    view = await user.do("INFER", job_id, input={"status": 422})
    assert failure(view) == ("FAILED", "inference_failed")
    assert view["error"]["detail"]["status"] == 422
    assert failure(await user.do("INFER", job_id, input={"not_json": True})) == (
        "FAILED",
        "bad_result",
    )
    assert failure(await user.do("INFER", job_id, input={"flood": "body"})) == (
        "FAILED",
        "result_too_large",
    )
    assert failure(await user.do("INFER", job_id, input={"sleep": 30}, timeout_s=0.5)) == (
        "TIMED_OUT",
        "timed_out",
    )
    assert (await user.job(job_id))["state"] == "LOADED"
    done = await user.done("INFER", job_id, input={"bytes": 500_000})
    answer = await user.http.get(f"/v1/operations/{done['operation_id']}/result")
    assert len(answer.content) > 500_000
    await user.done("TERMINATE", job_id)


async def test_a_redirect_out_of_the_container_is_not_followed(user: User) -> None:
    job_id = user.job_id()
    await user.done("DEPLOY_CREATE", job_id, model="probe-http")
    await user.done("DEPLOY_LOAD", job_id)
    view = await user.do("INFER", job_id, input={"redirect": f"{user.fleet.url}/v1/hosts"})
    assert failure(view) == ("FAILED", "inference_failed")
    await user.done("TERMINATE", job_id)


async def test_a_batch_program_that_fails_gives_its_exit_code(
    user: User, engines: dict[str, Engine]
) -> None:
    await put_probe(
        user, "bad-batch", "probe-batch", env={"PROBE_MODE": "batch", "PROBE_BATCH_EXIT": "5"}
    )
    job_id = user.job_id()
    view = await user.do("TEMP", job_id, model="bad-batch")
    assert failure(view) == ("FAILED", "exited")
    assert view["error"]["detail"]["exit_code"] == 5
    await nothing_is_left(user, engines, job_id)


async def test_a_temp_that_takes_too_long_is_timed_out_and_cleaned_up(
    user: User, engines: dict[str, Engine]
) -> None:
    env = {"PROBE_MODE": "batch", "PROBE_BATCH_SECONDS": "60"}
    await put_probe(user, "slow-batch", "probe-batch", env=env, stop_grace_s=0)
    job_id = user.job_id()
    view = await user.do("TEMP", job_id, model="slow-batch", timeout_s=1.5)
    assert failure(view) == ("TIMED_OUT", "timed_out")
    await nothing_is_left(user, engines, job_id)


async def test_a_dataset_that_is_not_there_fails_before_anything_runs(
    user: User, engines: dict[str, Engine]
) -> None:
    await user.put_dataset("nowhere", path=str(user.fleet.datasets / "nowhere"), wait_s=0.3)
    await user.put_dataset("outside", path="/etc")
    await user.put_dataset("no-volume", volume="ds-no-such-volume", wait_s=0)
    for dataset, code in [
        ("nowhere", "dataset_unavailable"),
        ("outside", "dataset_refused"),
        ("no-volume", "dataset_unavailable"),
    ]:
        job_id = user.job_id()
        view = await user.do("DEPLOY_CREATE", job_id, model="probe-http", dataset=dataset)
        assert failure(view) == ("FAILED", code)
        await nothing_is_left(user, engines, job_id)


async def test_a_dataset_that_comes_late_is_waited_for(user: User) -> None:
    late = user.fleet.datasets / user.job_id()
    await user.put_dataset("late", path=str(late), ready_file="_SUCCESS", wait_s=30)
    job_id = user.job_id()
    operation_id = await user.submit("DEPLOY_CREATE", job_id, model="probe-http", dataset="late")
    late.mkdir()
    (late / "part-0").write_text("x")
    (late / "_SUCCESS").write_text("")
    assert (await user.ended(operation_id))["state"] == "SUCCEEDED"
    await user.done("TERMINATE", job_id)


class _NoSuchImage(BaseHTTPRequestHandler):
    """A registry on loopback that knows no image."""

    def do_GET(self) -> None:
        known = self.path == "/v2/"
        body = b"{}" if known else b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"unknown"}]}'
        self.send_response(200 if known else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - http.server looks for this name

    def log_message(self, *args: object) -> None:
        del args


@pytest.fixture
def registry() -> Iterator[str]:
    """Serve a registry without images; engines speak plain HTTP to loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _NoSuchImage)
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()


async def test_a_missing_image_and_a_registry_that_is_away_have_their_own_codes(
    user: User, engines: dict[str, Engine], registry: str
) -> None:
    await put_probe(user, "no-image", image=f"{registry}/team/nothing:1")
    await put_probe(user, "no-registry", image="127.0.0.1:1/team/nothing:1")
    for model, code in [("no-image", "image_not_found"), ("no-registry", "image_pull_failed")]:
        job_id = user.job_id()
        view = await user.do("DEPLOY_CREATE", job_id, model=model)
        assert failure(view) == ("FAILED", code)
        assert view["error"]["message"]
        await nothing_is_left(user, engines, job_id)


async def test_one_failing_operation_leaves_its_neighbours_alone(user: User) -> None:
    await put_probe(user, "dies-starting", env={"PROBE_START_EXIT": "3"})
    models = ["probe-http", "dies-starting", "probe-http"]
    jobs = [user.job_id() for _ in models]
    views = await asyncio.gather(
        *(
            user.do("TEMP", job, model=model, input={"tag": "x"})
            for job, model in zip(jobs, models, strict=True)
        )
    )
    assert [view["state"] for view in views] == ["SUCCEEDED", "FAILED", "SUCCEEDED"]
