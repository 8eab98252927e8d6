"""What an operation reports, and what it leaves, when it does not go well."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx2
import pytest

from modelyard.contract.catalog.entries import DatasetSpec, Profile
from modelyard.contract.content.results import ResultContent
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.states import JobState, OperationState, Verb
from tests.fakes.programs import FakeBatch, FakeServer
from tests.support.waiting import eventually
from tests.support.worker.harness import BLIND_HOOKS, IMAGE, VerbHarness, model
from worker.attempts.attempt import Outcome
from worker.engine.protocol import DiskFullError, EngineUnavailableError, StartRefusedError

CREATE, LOAD, INFER, UNLOAD, TERMINATE, TEMP = (
    Verb.DEPLOY_CREATE,
    Verb.DEPLOY_LOAD,
    Verb.INFER,
    Verb.DEPLOY_UNLOAD,
    Verb.TERMINATE,
    Verb.TEMP,
)


def failed(
    ending: Outcome,
    code: ErrorCode,
    *,
    job: JobState | None = JobState.FAILED,
    state: OperationState = OperationState.FAILED,
) -> ErrorInfo:
    """Check how it ended; return the error."""
    assert ending.error is not None
    assert (ending.error.code, ending.state, ending.job_state) == (code, state, job)
    return ending.error


async def loaded(harness: VerbHarness) -> VerbHarness:
    await harness.do(CREATE)
    assert (await harness.do(LOAD)).state is OperationState.SUCCEEDED
    return harness


async def test_a_container_that_dies_at_start_fails_create_with_its_last_words() -> None:
    harness = VerbHarness(program=FakeServer(alive=False, start_exit=7))
    error = failed(await harness.do(CREATE), ErrorCode.EXITED)
    assert error.detail == {"exit_code": 7, "log_tail": "server starts\n"}
    assert harness.runtime.containers == {}


async def test_a_container_that_dies_while_loading_fails_load_as_exited() -> None:
    harness = VerbHarness(program=FakeServer(load_exit=9))
    await harness.do(CREATE)
    error = failed(await harness.do(LOAD), ErrorCode.EXITED)
    assert error.detail["exit_code"] == 9
    assert error.detail["log_tail"].endswith("cannot read the weights\n")
    assert harness.runtime.containers == {}


async def test_a_container_that_is_never_ready_is_given_up_at_its_deadline() -> None:
    harness = VerbHarness(model(load_timeout_s=0.2), FakeServer(becomes_ready=False))
    await harness.do(CREATE)
    failed(await harness.do(LOAD), ErrorCode.NOT_READY)
    assert harness.runtime.containers == {}


async def test_a_container_that_is_never_ready_says_what_it_answered_last() -> None:
    server = FakeServer(becomes_ready=False, unready_text='{"error":"CUDA OOM"}')
    harness = VerbHarness(model(load_timeout_s=0.2), server)
    await harness.do(CREATE)
    error = failed(await harness.do(LOAD), ErrorCode.NOT_READY)
    assert "GET /v2/models/m-1/ready on the container's port 8080" in error.message
    assert '503. Its body begins with: \'{"error":"CUDA OOM"}\'.' in error.message
    assert error.detail == {
        "asked": "GET /v2/models/m-1/ready on the container's port 8080",
        "last_answer": "503",
        "body": '{"error":"CUDA OOM"}',
        "log_tail": "server starts\n",
    }


async def test_a_load_that_hangs_is_given_up_at_its_deadline() -> None:
    server = FakeServer()
    server.may_load.clear()
    harness = VerbHarness(model(load_timeout_s=0.2), server)
    await harness.do(CREATE)
    failed(await harness.do(LOAD), ErrorCode.NOT_READY)


async def test_a_server_that_never_answers_alive_fails_create() -> None:
    harness = VerbHarness(model(start_timeout_s=0.1), FakeServer(alive=False))
    failed(await harness.do(CREATE), ErrorCode.NOT_READY)
    assert harness.runtime.containers == {}


async def test_a_refused_load_says_with_what_it_was_refused() -> None:
    harness = VerbHarness(program=FakeServer(load_status=500))
    await harness.do(CREATE)
    error = failed(await harness.do(LOAD), ErrorCode.LOAD_FAILED)
    assert (error.detail["status"], error.detail["body"]) == (500, "load")
    assert harness.runtime.containers == {}


async def test_an_engine_that_can_not_start_it_fails_with_its_words() -> None:
    harness = VerbHarness(program=FakeServer(refuse_start="no such device"))
    error = failed(await harness.do(CREATE), ErrorCode.START_FAILED)
    assert "no such device" in error.message


async def test_a_failed_inference_leaves_the_job_as_it_is() -> None:
    harness = await loaded(VerbHarness())
    harness.server.loaded = False
    harness.server.infer = lambda _: httpx2.Response(400, text="no")
    error = failed(await harness.do(INFER, input=1), ErrorCode.INFERENCE_FAILED, job=None)
    assert error.detail["status"] == 400
    assert harness.container.running


async def test_an_inference_whose_container_dies_fails_the_job() -> None:
    harness = await loaded(VerbHarness())
    harness.server.may_infer.clear()
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(harness.do(INFER, input=1))

        async def under_way() -> bool:
            return harness.server.infers_now == 1

        await eventually(under_way)
        harness.container.exit(137, oom_killed=True)
    error = failed(asking.result(), ErrorCode.OOM_KILLED)
    assert "its limit of 1 GiB" in error.message
    assert error.detail["exit_code"] == 137
    assert harness.runtime.containers == {}


@pytest.mark.parametrize("verb", [LOAD, INFER, UNLOAD])
async def test_a_container_that_is_gone_fails_the_job(verb: Verb) -> None:
    failed(await VerbHarness().do(verb, input=1), ErrorCode.CONTAINER_MISSING)


@pytest.mark.parametrize("verb", [INFER, UNLOAD])
async def test_a_container_that_has_exited_fails_the_job_and_is_removed(verb: Verb) -> None:
    harness = await loaded(VerbHarness())
    harness.container.exit(1)
    failed(await harness.do(verb, input=1), ErrorCode.EXITED)
    assert harness.runtime.containers == {}


@pytest.mark.parametrize(
    ("verb", "job"), [(LOAD, JobState.FAILED), (TEMP, JobState.FAILED), (INFER, None)]
)
async def test_what_takes_too_long_times_out(verb: Verb, job: JobState | None) -> None:
    harness = VerbHarness()
    await harness.do(CREATE)
    if verb is INFER:
        await harness.do(LOAD)
    harness.server.may_load.clear()
    harness.server.may_infer.clear()
    ended = await harness.do(verb, input=1, timeout_s=0.2)
    failed(ended, ErrorCode.TIMED_OUT, job=job, state=OperationState.TIMED_OUT)
    assert bool(harness.runtime.containers) is (verb is INFER)


async def test_a_pull_that_takes_too_long_times_out() -> None:
    harness = VerbHarness()
    harness.runtime.registry, harness.runtime.images = harness.runtime.images, {}
    harness.runtime.pull_may_end.clear()
    ended = await harness.do(CREATE, timeout_s=0.1)
    failed(ended, ErrorCode.TIMED_OUT, state=OperationState.TIMED_OUT)


@pytest.mark.parametrize("profile", [Profile.PROCESS, Profile.HTTP, Profile.OPEN_INFERENCE])
async def test_load_starts_a_container_that_does_not_run_and_loads_it(profile: Profile) -> None:
    harness = await loaded(VerbHarness(model(profile)))
    harness.container.exit(1)
    assert (await harness.do(LOAD)).job_state is JobState.LOADED
    assert harness.container.running
    assert harness.server.loads == (0 if profile is Profile.PROCESS else 2)


async def test_load_of_a_container_that_died_loads_a_server_that_can_not_be_asked() -> None:
    harness = await loaded(VerbHarness(model(Profile.HTTP, hooks=BLIND_HOOKS)))
    harness.container.exit(1)
    assert (await harness.do(LOAD)).job_state is JobState.LOADED
    assert harness.server.loads == 2


@pytest.mark.parametrize("verb", [CREATE, TEMP])
async def test_an_engine_that_is_away_is_said_to_be_away(verb: Verb) -> None:
    harness = VerbHarness()
    harness.runtime.available = False
    failed(await harness.do(verb, input=1), ErrorCode.ENGINE_UNAVAILABLE)


async def test_an_engine_that_is_away_says_nothing_of_a_job_that_is_to_be_loaded() -> None:
    harness = VerbHarness()
    await harness.do(CREATE)
    harness.runtime.available = False
    failed(await harness.do(LOAD), ErrorCode.ENGINE_UNAVAILABLE, job=None)
    harness.runtime.available = True
    assert (await harness.do(LOAD)).job_state is JobState.LOADED


RETRIED = [
    EngineUnavailableError("It hiccups."),
    DiskFullError("no space left on device"),
    ValueError("a bug"),
]


@pytest.mark.parametrize("error", RETRIED)
async def test_a_load_that_is_tried_again_leaves_its_container(error: Exception) -> None:
    harness = VerbHarness(model(Profile.PROCESS))
    await harness.do(CREATE)
    start, harness.runtime.start = harness.runtime.start, refusing(error)  # type: ignore[method-assign]
    ended = await harness.do(LOAD)
    assert (ended.state, ended.job_state) == (OperationState.FAILED, None)
    harness.runtime.start = start  # type: ignore[method-assign]
    assert (await harness.do(LOAD)).job_state is JobState.LOADED
    assert len(harness.runtime.created) == 1


@pytest.mark.parametrize("verb", [CREATE, TEMP])
@pytest.mark.parametrize("error", RETRIED)
async def test_a_create_that_is_tried_again_leaves_nothing(verb: Verb, error: Exception) -> None:
    harness = VerbHarness()
    harness.runtime.start = refusing(error)  # type: ignore[method-assign]
    ended = await harness.do(verb, input=1)
    assert (ended.state, ended.job_state) == (OperationState.FAILED, JobState.FAILED)
    assert harness.runtime.containers == {}


@pytest.mark.parametrize("verb", [INFER, UNLOAD, TERMINATE])
async def test_an_engine_that_is_away_says_nothing_of_a_loaded_job(verb: Verb) -> None:
    harness = await loaded(VerbHarness())
    harness.runtime.available = False
    failed(await harness.do(verb, input=1), ErrorCode.ENGINE_UNAVAILABLE, job=None)


async def test_a_fault_of_our_own_fails_one_operation_only() -> None:
    harness = await loaded(VerbHarness())

    def broken(_: object) -> object:
        raise RuntimeError("a bug")

    harness.server.infer = broken  # type: ignore[assignment]
    error = failed(await harness.do(INFER, input=1), ErrorCode.WORKER_ERROR, job=None)
    assert "a bug" not in error.message
    harness.server.infer = None
    assert (await harness.do(INFER, input=1)).state is OperationState.SUCCEEDED


@pytest.mark.parametrize(
    ("batch", "code"),
    [
        (FakeBatch(exit_code=3, stderr="boom\n"), ErrorCode.EXITED),
        (FakeBatch(exit_code=3, stderr="boom\n", oom_killed=True), ErrorCode.EXITED),
        (FakeBatch(exit_code=137, oom_killed=True), ErrorCode.OOM_KILLED),
        (FakeBatch(stdout=""), ErrorCode.BAD_RESULT),
        (FakeBatch(stdout="done!\n"), ErrorCode.BAD_RESULT),
        (FakeBatch(stdout='{"a": NaN}\n'), ErrorCode.BAD_RESULT),
        (FakeBatch(stdout='"' + "x" * (1 << 20) + '"\n'), ErrorCode.RESULT_TOO_LARGE),
    ],
)
async def test_a_batch_that_does_not_end_well_says_why(batch: FakeBatch, code: ErrorCode) -> None:
    harness = VerbHarness(model(Profile.BATCH), batch)
    error = failed(await harness.do(TEMP), code)
    if code is ErrorCode.EXITED:
        oom = {"oom_killed": True} if batch.oom_killed else {}
        assert error.detail == {"exit_code": 3, "log_tail": "boom\n"} | oom
    assert harness.runtime.containers == {}


@pytest.mark.parametrize(
    ("stdout", "result"),
    [
        ('{"ok": 1}\n', {"ok": 1}),
        ('10%\r50%\r100%\r{"ok": 1}\n', {"ok": 1}),
        ('10%\r50%\n{"ok": 1}\r\n', {"ok": 1}),
        ('first\n{"a": "b\\r"}\n\n', {"a": "b\r"}),
    ],
)
async def test_the_last_line_is_the_one_that_a_terminal_shows(stdout: str, result: object) -> None:
    harness = VerbHarness(model(Profile.BATCH), FakeBatch(stdout=stdout))
    ended = await harness.do(TEMP)
    assert json.loads(ended.result_json or "null") == result


async def test_a_child_that_was_killed_for_memory_costs_no_result() -> None:
    harness = VerbHarness(model(Profile.BATCH), FakeBatch(stdout='{"ok": 1}\n', oom_killed=True))
    ended = await harness.do(TEMP)
    assert (ended.state, ended.result_json) == (OperationState.SUCCEEDED, '{"ok":1}')


async def test_a_log_that_has_lost_the_result_is_not_called_empty() -> None:
    harness = VerbHarness(model(Profile.BATCH), FakeBatch(log_is_full=True))
    error = failed(await harness.do(TEMP), ErrorCode.BAD_RESULT)
    assert "rotated" in error.message


@pytest.mark.parametrize(
    ("batch", "more", "source"),
    [
        (FakeBatch(stdout="done \x1b[2J!\n"), {}, "the last line of stdout"),
        (
            FakeBatch(files={"/tmp/r.json": b"done \x1b[2J!"}),
            {"result_file": "/tmp/r.json"},
            "/tmp/r.json",
        ),
    ],
)
async def test_a_batch_whose_result_is_not_json_shows_how_it_begins(
    batch: FakeBatch, more: dict[str, str], source: str
) -> None:
    harness = VerbHarness(model(Profile.BATCH, **more), batch)
    error = failed(await harness.do(TEMP), ErrorCode.BAD_RESULT)
    shown = [error.detail[name] for name in ("source", "content_type", "body")]
    assert shown == [source, "application/json", r"done \x1b[2J!"]
    assert source in error.message
    assert r"begins with: done \x1b[2J!" in error.message


async def test_what_is_shown_of_a_long_result_is_short() -> None:
    harness = VerbHarness(model(Profile.BATCH), FakeBatch(stdout="x" * 100_000 + "\n"))
    error = failed(await harness.do(TEMP), ErrorCode.BAD_RESULT)
    assert error.detail["body"] == "x" * 200
    assert len(error.message) < 300


@pytest.mark.parametrize(("size", "state"), [(1 << 20, "SUCCEEDED"), ((1 << 20) + 1, "FAILED")])
async def test_a_batch_may_write_an_image(size: int, state: str) -> None:
    content = b"\x89PNG" + b"x" * (size - 4)
    spec = model(Profile.BATCH, result_file="/out/a.png", result_type="image/png")
    harness = VerbHarness(spec, FakeBatch(files={"/out/a.png": content}))
    ended = await harness.do(TEMP)
    assert ended.state == state
    expected = ResultContent(content_type="image/png", content=content)
    assert ended.result_content == (expected if state == "SUCCEEDED" else None)


async def test_a_result_file_that_is_not_there_is_a_bad_result() -> None:
    harness = VerbHarness(model(Profile.BATCH, result_file="/out/r.json"), FakeBatch())
    failed(await harness.do(TEMP), ErrorCode.BAD_RESULT)


async def test_a_temp_keeps_its_result_when_its_container_can_not_be_removed() -> None:
    harness = VerbHarness()

    def answer_and_vanish(_: object) -> object:
        harness.runtime.available = False
        return httpx2.Response(200, json=1)

    harness.server.infer = answer_and_vanish  # type: ignore[assignment]
    ended = await harness.do(TEMP, input=1)
    assert (ended.state, ended.result_json) == (OperationState.SUCCEEDED, "1")


def refusing(error: Exception) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return a call of the engine that raises `error`."""

    async def refuse(*_: object, **__: object) -> None:
        raise error

    return refuse


TROUBLE = [EngineUnavailableError("It hiccups."), ValueError("a bug")]


@pytest.mark.parametrize("trouble", TROUBLE)
async def test_what_could_not_be_removed_is_removed_later(trouble: Exception) -> None:
    harness = VerbHarness()
    remove, harness.runtime.remove = harness.runtime.remove, refusing(trouble)  # type: ignore[method-assign]
    ended = await harness.do(TEMP, input=1)
    assert (ended.state, ended.job_state) == (OperationState.SUCCEEDED, JobState.TERMINATED)
    harness.server.load_status = 500
    await harness.do(CREATE, job="job-3")
    failed(await harness.do(LOAD, job="job-3"), ErrorCode.LOAD_FAILED)
    assert len(harness.runtime.containers) == 2
    async with asyncio.TaskGroup() as tasks:
        cleaning = tasks.create_task(harness.operations.clean_up())
        harness.runtime.remove = remove  # type: ignore[method-assign]

        async def gone() -> bool:
            return not harness.runtime.containers

        await eventually(gone)
        cleaning.cancel()


async def test_what_is_made_anew_is_no_leftover_any_more() -> None:
    harness = VerbHarness()
    remove, harness.runtime.remove = harness.runtime.remove, refusing(TROUBLE[0])  # type: ignore[method-assign]
    harness.server.load_status = 500
    await harness.do(CREATE)
    await harness.do(LOAD)
    await harness.do(LOAD, job="job-2")
    await harness.do(CREATE, job="job-2")
    await harness.do(LOAD, job="job-2")
    harness.runtime.remove = remove  # type: ignore[method-assign]
    await harness.do(CREATE)
    async with asyncio.TaskGroup() as tasks:
        cleaning = tasks.create_task(harness.operations.clean_up())

        async def only_the_new_one() -> bool:
            return [it.name for it in harness.runtime.containers.values()] == ["modelyard-job-1-1"]

        await eventually(only_the_new_one)
        # One more pass, which would take it.
        await harness.do(CREATE, job="job-3")
        await asyncio.wait((cleaning,), timeout=0.05)
        assert harness.container.running
        cleaning.cancel()


@pytest.mark.parametrize("trouble", TROUBLE)
@pytest.mark.parametrize("call", ["log_tail", "inspect"])
async def test_trouble_in_the_aftermath_does_not_keep_the_container(
    call: str, trouble: Exception
) -> None:
    harness = VerbHarness(program=FakeServer(load_status=500))
    await harness.do(CREATE)
    harness.server.may_load.clear()
    async with asyncio.TaskGroup() as tasks:
        loading = tasks.create_task(harness.do(LOAD))

        async def under_way() -> bool:
            return harness.server.loads == 1

        await eventually(under_way)
        setattr(harness.runtime, call, refusing(trouble))
        harness.server.may_load.set()
    failed(loading.result(), ErrorCode.LOAD_FAILED)
    assert harness.runtime.containers == {}


async def test_a_refused_start_after_unload_is_not_taken_for_the_old_exit() -> None:
    harness = VerbHarness(model(Profile.PROCESS))
    for verb in (CREATE, LOAD, UNLOAD):
        assert (await harness.do(verb)).state is OperationState.SUCCEEDED
    harness.runtime.start = refusing(StartRefusedError("port is taken"))  # type: ignore[method-assign]
    error = failed(await harness.do(LOAD), ErrorCode.START_FAILED)
    assert "port is taken" in error.message


async def test_a_link_that_was_swapped_in_is_not_followed_at_the_next_start(
    tmp_path: Path,
) -> None:
    root, secret = tmp_path / "root", tmp_path / "secret"
    for folder in (root / "a", root / "b", secret):
        folder.mkdir(parents=True)
        (folder / "file").touch()
    harness = VerbHarness(model(Profile.PROCESS), dataset_roots=(str(root),))
    dataset = DatasetSpec(name="d", path=str(root / "a"), wait_s=0)
    for target, code, job in (
        (root / "b", ErrorCode.DATASET_UNAVAILABLE, None),
        (secret, ErrorCode.DATASET_REFUSED, JobState.FAILED),
    ):
        assert (await harness.do(CREATE, dataset=dataset)).state is OperationState.SUCCEEDED
        (root / "a").rename(root / "moved")
        (root / "a").symlink_to(target)
        failed(await harness.do(LOAD, dataset=dataset), code, job=job)
        (root / "a").unlink()
        (root / "moved").rename(root / "a")


async def test_a_removed_container_is_forgotten_however_it_was_removed() -> None:
    harness = VerbHarness(model(Profile.HTTP, hooks=BLIND_HOOKS))
    await loaded(harness)
    former = harness.container.id
    await harness.do(CREATE, generation=2)
    assert former not in harness.operations.containers.health.known


async def test_output_that_is_no_utf_8_is_a_bad_result() -> None:
    harness = VerbHarness(model(Profile.BATCH), FakeBatch(stdout='"a\udcffb"\n'))
    failed(await harness.do(TEMP), ErrorCode.BAD_RESULT)


async def test_the_kept_log_is_short() -> None:
    harness = VerbHarness(model(Profile.BATCH), FakeBatch(exit_code=1, stderr="x" * 5_000 + "\n"))
    error = failed(await harness.do(TEMP), ErrorCode.EXITED)
    assert len(error.detail["log_tail"]) == 2_048


async def test_an_image_outside_of_the_allow_list_is_refused_before_anything_is_asked() -> None:
    harness = VerbHarness(model(image="evil.example/x"), allowed=("allowed.example/*",))
    failed(await harness.do(CREATE), ErrorCode.IMAGE_REFUSED)
    assert harness.runtime.pulls == []


async def test_a_missing_image_and_a_refused_pull_have_codes_of_their_own() -> None:
    harness = VerbHarness(model(image="registry.example/none:1"))
    failed(await harness.do(CREATE), ErrorCode.IMAGE_NOT_FOUND)
    harness.runtime.pull_fault = "toomanyrequests"
    error = failed(await harness.do(CREATE), ErrorCode.IMAGE_PULL_FAILED)
    assert "toomanyrequests" in error.message


async def test_a_dataset_that_did_not_get_mounted_fails_create_and_leaves_nothing() -> None:
    harness = VerbHarness()
    harness.runtime.add_volume("v")
    harness.runtime.forget_mounts = True
    ended = await harness.do(CREATE, dataset=DatasetSpec(name="d", volume="v"))
    failed(ended, ErrorCode.DATASET_UNAVAILABLE)
    assert harness.runtime.containers == {}


async def test_a_job_may_be_created_again_after_it_failed() -> None:
    harness = VerbHarness(program=FakeServer(load_exit=1))
    await harness.do(CREATE)
    await harness.do(LOAD)
    harness.server.load_exit = None
    await harness.do(CREATE, generation=2)
    assert (await harness.do(LOAD, generation=2)).job_state is JobState.LOADED
    assert [it.plan.image for it in harness.runtime.containers.values() if it.plan] == [IMAGE]


async def test_cancellation_leaves_the_container_and_reports_no_end() -> None:
    harness = VerbHarness()
    await harness.do(CREATE)
    harness.server.may_load.clear()
    before = len(harness.reports)
    loading = asyncio.create_task(harness.do(LOAD))

    async def under_way() -> bool:
        return harness.server.loads == 1

    await eventually(under_way)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert harness.container.running
    assert not any(it.state.terminal for it in harness.reports[before:])
