"""The command line as people and scripts use it, against a gateway that serves."""

import asyncio
import hashlib
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modelyard.contract.content.results import ResultContent
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.states import OperationState
from tests.support.command_line import run, run_on_terminal, started
from tests.support.gateway import ServedGateway, serving, serving_a_fleet


@pytest.fixture
async def served(mongo_url: str, amqp_url: str) -> AsyncIterator[ServedGateway]:
    async with serving_a_fleet(mongo_url, amqp_url) as served:
        yield served


async def test_a_failure_is_told_whole(served: ServedGateway) -> None:
    log = "\n".join(f"line {number} of what the program wrote" for number in range(40))
    detail = {"exit_code": 3, "body": "{" + "x" * 300, "log_tail": log}
    operation_id = await served.accepted(operation_type="INFER", input=1)
    error = ErrorInfo(code=ErrorCode.EXITED, message="It exited.", detail=detail)
    await served.finish(operation_id, OperationState.FAILED, error=error)
    waited = await run(served.url, "wait", operation_id)
    shown = await run(served.url, "status", operation_id)
    for told in (waited.err, shown.out):
        lines = [line.strip() for line in told.splitlines()]
        assert {"exit code: 3", "body: {" + "x" * 300, "log tail:"} <= set(lines)
        assert all(line in lines for line in log.splitlines())
    assert f"operation {operation_id} ended FAILED: exited: It exited." in waited.err


async def test_errors_are_json_for_machines(served: ServedGateway) -> None:
    operation_id = await served.accepted(operation_type="INFER", input=1)
    error = ErrorInfo(code=ErrorCode.EXITED, message="It exited.", detail={"exit_code": 3})
    await served.finish(operation_id, OperationState.FAILED, error=error)
    expected: dict[tuple[str, ...], tuple[int, dict[str, object]]] = {
        ("status", "nobody"): (1, {"code": "not_found", "status": 404}),
        ("terminate", "a/b"): (2, {"code": "invalid_request", "status": 422}),
        ("infer", "j-1"): (
            2,
            {"code": "usage", "message": "Invalid value for --input: give --input or --upload"},
        ),
        ("wait", operation_id): (
            1,
            {"code": "exited", "operation_id": operation_id, "detail": {"exit_code": 3}},
        ),
    }
    for arguments, (code, fields) in expected.items():
        ran = await run(served.url, *arguments, "--json")
        problem = json.loads(ran.err.splitlines()[-1])["error"]
        assert (ran.code, problem) == (code, {**problem, **fields})
    away = await run("http://127.0.0.1:1", "hosts", "--json")
    assert (away.code, json.loads(away.err)["error"]["code"]) == (3, "unavailable")


async def test_who_interrupts_a_wait_is_told_how_to_go_on(served: ServedGateway) -> None:
    waiting = await started(served.url, "infer", "j-1", "--input", "1", "--wait")
    await served.has_waiters()
    waiting.send_signal(signal.SIGINT)
    _, told = await waiting.communicate()
    [submission] = await served.published(1)
    operation_id = submission.requests[0].operation_id
    assert waiting.returncode == 130
    assert told.decode().splitlines()[0] == f"operation {operation_id}"
    assert f"`modelyard wait {operation_id}` follows it again" in told.decode()
    assert "Traceback" not in told.decode()


async def test_a_wait_outlives_the_restart_of_a_gateway(mongo_url: str, amqp_url: str) -> None:
    async with serving(mongo_url, amqp_url) as first:
        port = int(first.url.rpartition(":")[2])
        operation_id = await first.accepted()
        waiting = await started(first.url, "wait", operation_id)
        await first.has_waiters()
    assert waiting.stderr is not None
    async with asyncio.timeout(60):
        while b"Trying again" not in (line := await waiting.stderr.readline()):
            assert line, "it ended before it tried again"
    async with serving(mongo_url, amqp_url, port=port) as second:
        await second.finish(operation_id)
        out, _ = await waiting.communicate()
    assert waiting.returncode == 0
    assert "SUCCEEDED" in out.decode()


async def test_a_job_stands_for_its_operation_where_it_is_clear(served: ServedGateway) -> None:
    ended = await served.accepted(job_id="j-1", operation_type="INFER", input=1)
    await served.finish(ended, result_json="[7]")
    waiting = await served.accepted(job_id="j-1", operation_type="INFER", input=2)
    assert (await run(served.url, "result", "j-1")).out == "[7]\n"
    cancelled = await run(served.url, "cancel", "j-1")
    assert cancelled.code == 0, cancelled.err
    assert waiting in cancelled.out
    await served.accepted(job_id="j-1", operation_type="INFER", input=3)
    unclear = await run(served.url, "wait", "j-1")
    assert unclear.code == 2
    assert "2 operations that have not ended" in unclear.err
    assert waiting in unclear.err
    unknown = await run(served.url, "result", "j-9")
    assert (unknown.code, "not_found" in unknown.err) == (1, True)


async def test_states_and_verbs_are_taken_in_lower_case(served: ServedGateway) -> None:
    operation_id = await served.accepted(job_id="j-1")
    listed = await run(served.url, "operations", "--state", "queued", "--verb", "terminate")
    assert operation_id in listed.out
    assert (await run(served.url, "jobs", "--state", "none")).code == 0


async def test_limits_and_notes_are_options_of_every_verb(served: ServedGateway) -> None:
    options = ("--timeout", "30", "--queue-timeout", "60", "--priority", "5")
    notes = ("--metadata", "by=me", "--metadata", "why=a=b")
    for verb in (
        ("create", "j-1", "-m", "m-131"),
        ("load", "j-1"),
        ("infer", "j-1", "--input", "1"),
        ("unload", "j-1"),
        ("terminate", "j-1"),
        ("temp", "j-2", "-m", "m-131"),
    ):
        ran = await run(served.url, *verb, *options, *notes)
        assert ran.code == 0, ran.err
        view = json.loads((await run(served.url, "status", ran.out.strip(), "--json")).out)
        assert (view["timeout_s"], view["queue_timeout_s"], view["priority"]) == (30, 60, 5)
        assert view["metadata"] == {"by": "me", "why": "a=b"}
    wrong = await run(served.url, "load", "j-1", "--metadata", "by")
    assert (wrong.code, "NAME=TEXT" in wrong.err) == (2, True)


async def test_models_are_applied_from_yaml_with_several_in_a_file(
    served: ServedGateway, tmp_path: Path
) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(
        "name: a\nimage: a/b:1\nprofile: batch\n---\nname: b\nimage: a/b:2\nprofile: batch\n"
    )
    assert (await run(served.url, "models", "apply", str(file))).code == 0
    listed = (await run(served.url, "models", "list")).out
    assert {"a/b:1", "a/b:2"} <= set(listed.split())
    piped = await run(served.url, "datasets", "apply", "-", stdin="name: d\npath: /srv/d\n")
    assert piped.code == 0, piped.err


async def test_jobs_hosts_and_models_are_described_with_what_belongs_to_them(
    served: ServedGateway,
) -> None:
    operation_id = await served.accepted(job_id="j-1")
    job = await run(served.url, "describe", "job", "j-1")
    assert (job.code, operation_id in job.out) == (0, True)
    as_json = json.loads((await run(served.url, "describe", "job", "j-1", "--json")).out)
    assert [one["operation_id"] for one in as_json["operations"]] == [operation_id]
    host = await run(served.url, "describe", "host", "h-1")
    assert (host.code, "incarnation" in host.out) == (0, True)
    model = await run(served.url, "describe", "model", "m-131")
    assert (model.code, "profile" in model.out) == (0, True)
    for kind in ("job", "host", "model"):
        assert (await run(served.url, "describe", kind, "nobody")).code == 1


async def test_a_terminal_gets_a_long_result_abridged_and_a_pipe_gets_it_whole(
    served: ServedGateway,
) -> None:
    operation_id = await served.accepted(operation_type="INFER", input=1)
    result = {"pixels": list(range(1_000))}
    await served.finish(operation_id, result_json=json.dumps(result))
    assert json.loads((await run(served.url, "result", operation_id)).out) == result
    seen = await run_on_terminal(served.url, "result", operation_id)
    assert "… 990 more" in seen.out
    assert len(seen.out) < 200
    assert "Abridged" in seen.err
    whole = await run_on_terminal(served.url, "result", operation_id, "--json")
    assert json.loads(whole.out) == result


async def test_an_image_goes_into_a_file_or_a_pipe_and_a_terminal_is_told_what_it_is(
    served: ServedGateway, tmp_path: Path
) -> None:
    operation_id = await served.accepted(operation_type="INFER", input=1)
    content = b"\x89PNG\x1b[2J" + bytes(range(256))
    result = ResultContent(content_type="image/png", content=content)
    await served.finish(operation_id, result_json=result)
    seen = await run_on_terminal(served.url, "result", operation_id)
    assert seen.out == ""
    assert "image/png, 264 bytes" in seen.err
    file = tmp_path / "a.png"
    assert (await run(served.url, "result", operation_id, "-o", str(file))).code == 0
    assert file.read_bytes() == content
    piped = await started(served.url, "result", operation_id)
    assert (await piped.communicate())[0] == content
    told = json.loads((await run(served.url, "result", operation_id, "--json")).out)
    assert told == {
        "result_type": "image/png",
        "result_bytes": len(content),
        "result_sha256": hashlib.sha256(content).hexdigest(),
    }


async def test_a_text_is_printed_on_a_terminal_and_commands_nothing(served: ServedGateway) -> None:
    operation_id = await served.accepted(operation_type="INFER", input=1)
    result = ResultContent(content_type="text/plain", content=b"seen\x1b[2J\n" + b"line\n" * 100)
    await served.finish(operation_id, result_json=result)
    seen = await run_on_terminal(served.url, "result", operation_id)
    assert r"seen\x1b[2J" in seen.out
    assert "… 42 more lines" in seen.out
    assert (await run(served.url, "result", operation_id)).out.encode() == result.content


async def test_a_narrow_terminal_gets_fewer_columns_and_whole_words(served: ServedGateway) -> None:
    operation_id = await served.accepted(job_id="a-job-with-a-name-of-some-length")
    seen = await run_on_terminal(served.url, "operations", columns=80)
    assert f"{operation_id}  a-job-with-a-name-of-some-length" in seen.out.splitlines()[1]
    assert "No room for: " in seen.err
    piped = (await run(served.url, "operations")).out.splitlines()
    assert len(piped) == 2
    assert piped[0].split()[-1] == "reason"
