"""Large results: read in a process of their own, so that nobody else waits for them."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx2
import pytest

from modelyard.contract.catalog.entries import Profile
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.messages import MAX_RESULT_BYTES
from modelyard.contract.states import JobState, OperationState, Verb
from modelyard.process.body_process import LARGE_BODY_BYTES
from tests.fakes.programs import FakeBatch
from tests.support.large_bodies import FILLS, MIB, feeling
from tests.support.waiting import eventually
from tests.support.worker.harness import VerbHarness, model
from tests.support.worker.host import running_host
from worker.model_server.results import ResultReader, result_of

CONTAINERS, ANSWERS_EACH = 4, 2
LARGE = b"[" + b",".join([b'{"a":1}'] * (MIB // 8 - 1)) + b"]"


@pytest.fixture
async def reader() -> AsyncIterator[ResultReader]:
    made = ResultReader()
    await made.read(b" " * LARGE_BODY_BYTES + b"1")
    yield made
    await made.aclose()


def pid_of(reader: ResultReader) -> int:
    assert reader._process._process is not None
    return reader._process._process.pid


async def gone(pid: int) -> None:
    """Return once no process has this id."""

    async def ended() -> bool:
        with suppress(ProcessLookupError):
            os.kill(pid, 0)
            return False
        return True

    await eventually(ended, what="the end of the process")


async def test_large_results_of_many_containers_hold_up_nobody() -> None:
    harness = VerbHarness()
    harness.server.infer = lambda _: httpx2.Response(200, content=LARGE)
    jobs = [f"job-{number}" for number in range(CONTAINERS)]
    for job in jobs:
        for verb in (Verb.DEPLOY_CREATE, Verb.DEPLOY_LOAD):
            assert (await harness.do(verb, job=job)).state is OperationState.SUCCEEDED
    try:
        async with feeling() as lags:
            ends = await asyncio.gather(
                *(harness.do(Verb.INFER, job=job, input=1) for job in jobs * ANSWERS_EACH)
            )
    finally:
        await harness.results.aclose()
    assert {end.state for end in ends} == {OperationState.SUCCEEDED}
    assert lags.worst < 0.3


async def test_the_large_result_of_a_batch_is_read_there_too() -> None:
    harness = VerbHarness(model(Profile.BATCH), FakeBatch(stdout=LARGE.decode() + "\n"))
    try:
        end = await harness.do(Verb.TEMP)
        assert end.result_json == LARGE.decode()
        assert pid_of(harness.results)
    finally:
        await harness.results.aclose()


async def test_a_result_is_the_same_wherever_it_is_read(reader: ResultReader) -> None:
    for name, fill in FILLS.items():
        body = fill(MIB // 8)
        assert await reader.read(body) == result_of(body), name


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"x" * MIB, ErrorCode.BAD_RESULT),
        (b'"' + b"x" * MAX_RESULT_BYTES + b'"', ErrorCode.RESULT_TOO_LARGE),
    ],
)
async def test_what_is_wrong_with_a_large_result_is_said_as_of_a_small_one(
    reader: ResultReader, body: bytes, code: ErrorCode
) -> None:
    with pytest.raises(ModelyardError) as here:
        result_of(body)
    with pytest.raises(ModelyardError) as there:
        await reader.read(body)
    assert there.value.code is code
    assert there.value.info() == here.value.info()


async def test_a_process_that_fails_is_a_fault_of_the_worker_and_not_of_the_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.model_server.results.MODULE", "tests.no_such_module")
    harness = VerbHarness()
    harness.server.infer = lambda _: httpx2.Response(200, content=LARGE)
    for verb in (Verb.DEPLOY_CREATE, Verb.DEPLOY_LOAD):
        assert (await harness.do(verb)).state is OperationState.SUCCEEDED
    end = await harness.do(Verb.INFER, input=1)
    assert end.error is not None
    assert (end.state, end.error.code) == (OperationState.FAILED, ErrorCode.WORKER_ERROR)
    assert "could not read the result" in end.error.message
    assert end.job_state is not JobState.FAILED
    assert harness.container.running


async def test_the_process_ends_with_its_worker() -> None:
    harness = VerbHarness()
    harness.server.infer = lambda _: httpx2.Response(200, content=LARGE)
    async with running_host(harness) as host:
        for verb in (Verb.DEPLOY_CREATE, Verb.DEPLOY_LOAD):
            await host.done(verb)
        await host.done(Verb.INFER, input=1)
        pid = pid_of(host.service._results)
    await gone(pid)


_READS_AND_WAITS = """
import asyncio
from worker.model_server.results import ResultReader
async def main():
    reader = ResultReader()
    await reader.read(b"[" + b"1," * 40_000 + b"1]")
    print(reader._process._process.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_the_process_ends_with_a_worker_that_is_killed() -> None:
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _READS_AND_WAITS, stdout=asyncio.subprocess.PIPE
    )
    assert worker.stdout is not None
    async with asyncio.timeout(30):
        pid = int(await worker.stdout.readline())
    worker.kill()
    await worker.wait()
    await gone(pid)
