"""The client library and the command line against a gateway that serves."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from modelyard.client import ApiError, AsyncModelyard, Modelyard, OperationFailed
from modelyard.contract.catalog import DatasetSpec, ModelSpec, Profile
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.messages import EngineFacts, HostOnline
from modelyard.contract.states import JobState, OperationState
from tests.support.gateway import Backstage, fill_catalog, serving


@pytest.fixture
async def yard(mongo_url: str, amqp_url: str) -> AsyncIterator[Backstage]:
    async with serving(mongo_url, amqp_url) as backstage:
        await fill_catalog(backstage.store)
        online = HostOnline(slots=2, engine=EngineFacts(version="29", api_version="1.44"))
        await backstage.store.hosts.come_online("h-1", "i-1", online)
        yield backstage


async def test_a_whole_life_through_the_synchronous_client(yard: Backstage) -> None:
    with Modelyard(yard.url) as client:
        asked = await asyncio.to_thread(client.infer, "j-1", {"x": [1]})
        waiting = asyncio.create_task(asyncio.to_thread(client.wait, asked, 20))
        await yard.has_waiters()
        await yard.finish(asked.operation_id, result_json='{"y":[2]}')
        assert (await waiting).state is OperationState.SUCCEEDED
        assert await asyncio.to_thread(client.result, asked) == {"y": [2]}
        assert (await asyncio.to_thread(client.job, "j-1")).state is JobState.NONE
        [host] = await asyncio.to_thread(client.hosts)
        assert host == await asyncio.to_thread(client.host, "h-1")


async def test_the_asynchronous_client_reads_pages_batches_and_the_catalog(
    yard: Backstage,
) -> None:
    async with AsyncModelyard(yard.url) as client:
        requests = [{"job_id": f"j-{n}", "operation_type": "TERMINATE"} for n in range(3)]
        items = await client.submit_batch([*requests, {}])
        assert [item.status for item in items] == [202, 202, 202, 422]
        page = await client.operations(limit=2, state="QUEUED")
        rest = await client.operations(limit=2, state="QUEUED", cursor=page.next)
        assert [len(page.operations), len(rest.operations), rest.next] == [2, 1, None]
        assert len((await client.jobs()).jobs) == 3
        model = ModelSpec(name="m", image="a/b:1", profile=Profile.BATCH)
        assert await client.put_model(model) == await client.model("m") == model
        assert [one.name for one in await client.models()] == ["m", "m-131"]
        await client.delete_model("m")
        dataset = DatasetSpec(name="d", volume="v")
        assert await client.put_dataset(dataset) == await client.dataset("d")
        assert [one.name for one in await client.datasets()] == ["d", "ds-550"]
        await client.delete_dataset("d")
        with pytest.raises(ApiError) as caught:
            await client.dataset("d")
        assert caught.value.code == "not_found"


async def test_a_failure_carries_its_cause(yard: Backstage) -> None:
    async with AsyncModelyard(yard.url) as client:
        asked = await client.temp("j-1", "m-131", "ds-550")
        error = ErrorInfo(code=ErrorCode.OOM_KILLED, message="Too little memory.")
        await yard.finish(asked.operation_id, OperationState.FAILED, error=error)
        with pytest.raises(OperationFailed, match="oom_killed") as caught:
            await client.wait(asked, 10)
        assert caught.value.operation.error == error


# --- the command line ---


@dataclass(frozen=True)
class Ran:
    """What a command said."""

    code: int
    out: str
    err: str


async def run(url: str, *arguments: str, stdin: str = "") -> Ran:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "modelyard.cli",
        *arguments,
        env={"MODELYARD_URL": url, "COLUMNS": "200"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(stdin.encode())
    assert "Traceback" not in err.decode()
    return Ran(process.returncode or 0, out.decode(), err.decode())


async def test_waiting_shows_the_states_and_prints_the_result(yard: Backstage) -> None:
    arguments = ("infer", "j-1", "--input", '{"x": 1}', "--wait")
    running = asyncio.create_task(run(yard.url, *arguments))
    await yard.has_waiters()
    [submission] = await yard.published(1)
    await yard.finish(submission.requests[0].operation_id, result_json='{"y": "ü"}')
    ran = await running
    assert ran.code == 0
    assert json.loads(ran.out) == {"y": "ü"}
    assert ran.err.splitlines() == ["INFER j-1 QUEUED", "INFER j-1 SUCCEEDED on h-1"]


async def test_a_failed_operation_is_exit_code_1(yard: Backstage) -> None:
    operation_id = await yard.accepted()
    error = ErrorInfo(code=ErrorCode.EXITED, message="It exited.")
    await yard.finish(operation_id, OperationState.FAILED, error=error)
    ran = await run(yard.url, "wait", operation_id)
    assert ran.code == 1
    assert "exited: It exited." in ran.err
    machine = await run(yard.url, "wait", operation_id, "--json")
    assert machine.code == 1
    assert json.loads(machine.out)["state"] == "FAILED"


async def test_verbs_print_the_operation_for_people_and_machines(yard: Backstage) -> None:
    for arguments in (
        ("create", "j-1", "--model", "m-131", "-d", "ds-550", "--priority", "3"),
        ("load", "j-1"),
        ("unload", "j-1"),
        ("terminate", "j-1"),
        ("temp", "j-1", "-m", "m-131"),
    ):
        ran = await run(yard.url, *arguments)
        assert ran.code == 0, ran.err
        shown = await run(yard.url, "status", ran.out.strip())
        assert "QUEUED" in shown.out
    ran = await run(yard.url, "terminate", "j-1", "--json")
    assert json.loads(ran.out)["links"]["job"] == "/v1/jobs/j-1"


async def test_lists_are_tables_or_json(yard: Backstage) -> None:
    operation_id = await yard.accepted(job_id="j-1")
    for command, expected in (
        ("operations", operation_id),
        ("jobs", "j-1"),
        ("hosts", "h-1"),
    ):
        assert expected in (await run(yard.url, command)).out
        assert expected in json.dumps(json.loads((await run(yard.url, "--json", command)).out))
    assert "NONE" in (await run(yard.url, "status", "j-1")).out
    none = await run(yard.url, "operations", "--state", "FAILED", "--json")
    assert json.loads(none.out) == []


async def test_the_catalog_is_applied_listed_read_and_deleted(
    yard: Backstage, tmp_path: Path
) -> None:
    model = tmp_path / "model.json"
    model.write_text('{"name": "m", "image": "a/b:1", "profile": "batch"}')
    assert (await run(yard.url, "models", "apply", str(model))).code == 0
    assert "a/b:1" in (await run(yard.url, "models", "list")).out
    assert "batch" in (await run(yard.url, "models", "get", "m")).out
    assert (await run(yard.url, "models", "delete", "m")).code == 0
    gone = await run(yard.url, "models", "get", "m")
    assert gone.code == 1
    assert "not_found" in gone.err
    dataset = '{"name": "d", "path": "/srv/d"}'
    assert (await run(yard.url, "datasets", "apply", "-", stdin=dataset)).code == 0
    assert "/srv/d" in (await run(yard.url, "datasets", "list")).out


async def test_a_file_of_requests_is_submitted_as_a_batch(yard: Backstage) -> None:
    good = {"job_id": "j-1", "operation_type": "TERMINATE"}
    ran = await run(yard.url, "submit", "-", stdin=json.dumps([good, good]))
    assert ran.code == 0, ran.err
    assert ran.out.count("202") == 2
    bad = await run(yard.url, "submit", "-", "--json", stdin=json.dumps([good, {}]))
    assert bad.code == 1
    assert [one["status"] for one in json.loads(bad.out)] == [202, 422]


async def test_wrong_usage_is_exit_code_2_and_says_why(yard: Backstage) -> None:
    wrong = {
        ("infer", "j-1"): "--input",
        ("infer", "j-1", "--input", "{"): "--input",
        ("create", "j-1"): "--model",
        ("submit", "/nowhere.json"): "No such file",
        ("terminate", "a/b"): "job_id",
        ("--url", "nonsense", "hosts"): "is not a URL",
        ("dance",): "dance",
    }
    for arguments, expected in wrong.items():
        ran = await run(yard.url, *arguments)
        assert ran.code == 2, (arguments, ran)
        assert expected in ran.err
        assert ran.out == ""


async def test_a_gateway_that_is_away_is_exit_code_3() -> None:
    ran = await run("http://127.0.0.1:1", "hosts")
    assert ran.code == 3
    assert ran.err.startswith("error: The gateway does not answer")
