"""Model servers that are busy, load themselves or listen elsewhere: what their jobs become."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from modelyard.contract.catalog.entries import Profile
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.states import JobState, OperationState, Phase, Verb
from modelyard.process.tasks import TaskGroup
from tests.fakes.programs import FakeServer
from tests.support.waiting import eventually
from tests.support.worker.harness import IMAGE, VerbHarness, model
from tests.support.worker.inventory import InventoryHarness
from worker.attempts.attempt import Outcome
from worker.engine.protocol import MemoryReading

CREATE, LOAD, INFER, UNLOAD, TEMP = (
    Verb.DEPLOY_CREATE,
    Verb.DEPLOY_LOAD,
    Verb.INFER,
    Verb.DEPLOY_UNLOAD,
    Verb.TEMP,
)
SERVERS = [Profile.HTTP, Profile.OPEN_INFERENCE]


@pytest.fixture(autouse=True)
def _short_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.model_server.client.PROBE_S", 0.05)


async def loaded(harness: VerbHarness) -> VerbHarness:
    assert (await harness.do(CREATE)).job_state is JobState.CREATED
    assert (await harness.do(LOAD)).job_state is JobState.LOADED
    return harness


@asynccontextmanager
async def underway(
    harness: VerbHarness, verb: Verb, words: str, times: int = 1
) -> AsyncIterator[asyncio.Task[Outcome]]:
    """Give an operation under way that has asked `words` of the server so often."""
    before = len([it for it in harness.server.requests if it.endswith(words)])
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        doing = tasks.create_task(harness.do(verb))

        async def asked() -> bool:
            now = len([it for it in harness.server.requests if it.endswith(words)])
            return now >= before + times

        await eventually(asked)
        yield doing


@pytest.mark.parametrize("profile", SERVERS)
async def test_the_unload_of_a_busy_server_is_really_sent(profile: Profile) -> None:
    harness = await loaded(VerbHarness(model(profile)))
    harness.server.busy.clear()
    async with underway(harness, UNLOAD, "/unload") as unloading:
        assert not unloading.done()
        assert harness.server.unloads == 0
        harness.server.busy.set()
    assert unloading.result().job_state is JobState.CREATED
    assert (harness.server.unloads, harness.server.loaded) == (1, False)


@pytest.mark.parametrize("profile", SERVERS)
@pytest.mark.parametrize("restarted", [True, False])
async def test_the_unload_of_a_server_that_answers_503_is_really_sent(
    profile: Profile,
    restarted: bool,  # noqa: FBT001 - pytest names it
) -> None:
    harness = await loaded(VerbHarness(model(profile)))
    if restarted:
        harness.restarted()
    harness.server.overloaded = True
    assert (await harness.do(UNLOAD)).job_state is JobState.CREATED
    assert (harness.server.unloads, harness.server.loaded) == (1, False)


async def test_a_model_whose_load_was_cut_short_is_not_taken_for_one_that_is_out() -> None:
    harness = VerbHarness()
    assert (await harness.do(CREATE)).job_state is JobState.CREATED
    harness.server.becomes_ready = False
    async with underway(harness, LOAD, "/load") as loading:
        loading.cancel()
        await asyncio.wait((loading,))
    assert harness.server.loaded
    assert (await harness.do(UNLOAD)).job_state is JobState.CREATED
    assert (harness.server.unloads, harness.server.loaded) == (1, False)


@pytest.mark.parametrize("profile", SERVERS)
async def test_the_unload_of_a_server_that_stays_busy_does_not_succeed(profile: Profile) -> None:
    harness = await loaded(VerbHarness(model(profile)))
    harness.server.busy.clear()
    ended = await harness.do(UNLOAD, timeout_s=0.3)
    assert ended.state is OperationState.TIMED_OUT
    assert ended.job_state is None
    assert harness.container.running


async def test_the_unload_of_a_server_that_refuses_connections_fails() -> None:
    harness = await loaded(VerbHarness())
    harness.server.moves_away = True
    ended = await harness.do(UNLOAD)
    assert ended.error is not None
    assert ended.error.code is ErrorCode.UNLOAD_FAILED


@pytest.mark.parametrize("verb", [LOAD, UNLOAD])
async def test_no_hook_is_sent_to_the_container_that_has_the_address_after_a_measurement(
    verb: Verb,
) -> None:
    harness = VerbHarness(model(Profile.HTTP))
    harness.runtime.images[IMAGE] = lambda _: FakeServer()
    for job in ("job-1", "job-2"):
        await harness.do(CREATE, job=job)
        if verb is UNLOAD:
            await harness.do(LOAD, job=job)
    ended, other = harness.container, harness.runtime.named("modelyard-job-2-1")
    assert isinstance(other.program, FakeServer)
    before = len(other.program.requests)

    async def memory(_: str) -> MemoryReading:
        ended.exit(1)
        other.port = ended.port
        return MemoryReading()

    harness.runtime.memory = memory  # type: ignore[method-assign,assignment]
    end = await harness.do(verb)
    assert end.error is not None
    assert end.error.code is ErrorCode.EXITED
    assert other.program.requests[before:] == []


async def test_a_server_that_is_silent_after_its_unload_is_not_taken_for_unloaded() -> None:
    harness = await loaded(VerbHarness(model(load_timeout_s=0.3)))

    def then_silent() -> None:
        harness.server.silent = harness.server.unloads > 0

    harness.server.before_answer = then_silent
    ended = await harness.do(UNLOAD)
    assert ended.error is not None
    assert ended.error.code is ErrorCode.UNLOAD_FAILED
    assert "closed without an answer" in ended.error.message


@pytest.mark.parametrize("profile", SERVERS)
async def test_a_load_waits_until_a_busy_server_says_whether_it_is_loaded(profile: Profile) -> None:
    harness = await loaded(VerbHarness(model(profile)))
    harness.restarted()
    harness.server.busy.clear()
    async with underway(harness, LOAD, "/ready", times=2):
        harness.server.busy.set()
    assert harness.server.loads == 1, "it was loaded already"


async def test_a_load_of_a_server_that_stays_silent_says_what_was_asked() -> None:
    harness = VerbHarness(model(load_timeout_s=0.3))
    await harness.do(CREATE)
    harness.server.busy.clear()
    ended = await harness.do(LOAD)
    assert ended.error is not None
    assert ended.error.code is ErrorCode.NOT_READY
    assert "GET /v2/models/m-1/ready on the container's port 8080" in ended.error.message
    assert "nothing within" in ended.error.message
    assert harness.server.loads == 0


def self_loading(load_timeout_s: float = 10.0) -> VerbHarness:
    server = FakeServer(repository=False, ready_from_start=True, becomes_ready=False)
    return VerbHarness(model(load_timeout_s=load_timeout_s), server)


async def test_a_server_that_loads_itself_is_loaded_whenever_load_is_sent() -> None:
    early = self_loading()
    await early.do(CREATE)
    async with underway(early, LOAD, "/ready", times=2) as loading:
        assert not loading.done()
        early.server.becomes_ready = True
    assert loading.result().job_state is JobState.LOADED
    late = self_loading()
    late.server.becomes_ready = True
    await loaded(late)
    assert (early.server.loads, late.server.loads) == (0, 0)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (405, "no"),
        (501, "no"),
        (503, '{"error":"explicit model load / unload is not allowed"}'),
        (400, '{"error":"explicit model load / unload is not allowed if polling is enabled"}'),
    ],
)
async def test_a_server_may_say_in_other_words_that_it_loads_itself(status: int, body: str) -> None:
    harness = VerbHarness()
    harness.server.load_status, harness.server.load_text = status, body
    await harness.do(CREATE)
    async with underway(harness, LOAD, "/ready", times=2) as loading:
        harness.server.loaded = True
    assert loading.result().job_state is JobState.LOADED


async def test_a_server_that_never_loads_itself_fails_with_both_answers() -> None:
    harness = self_loading(load_timeout_s=0.2)
    await harness.do(CREATE)
    ended = await harness.do(LOAD)
    assert ended.error is not None
    assert ended.error.code is ErrorCode.NOT_READY
    assert "answered 404 to POST /v2/repository/models/m-1/load" in ended.error.message
    assert "the last answer was: 503" in ended.error.message


async def test_a_model_that_a_repository_does_not_know_fails_at_once() -> None:
    harness = VerbHarness()
    harness.server.load_status, harness.server.has_index = 404, True
    await harness.do(CREATE)
    async with asyncio.timeout(10):
        ended = await harness.do(LOAD)
    assert ended.error is not None
    assert ended.error.code is ErrorCode.LOAD_FAILED


async def test_a_missing_load_hook_of_a_model_with_own_hooks_is_no_repository() -> None:
    harness = VerbHarness(model(Profile.HTTP))
    harness.server.load_status = 404
    await harness.do(CREATE)
    ended = await harness.do(LOAD)
    assert ended.error is not None
    assert ended.error.code is ErrorCode.LOAD_FAILED


async def test_the_unload_of_a_server_that_loads_itself_stops_it_and_load_starts_it() -> None:
    harness = self_loading()
    harness.server.becomes_ready = True
    await loaded(harness)
    assert (await harness.do(UNLOAD)).job_state is JobState.CREATED
    assert not harness.container.running
    assert Phase.UNLOADING in harness.phases
    assert (await harness.do(UNLOAD)).job_state is JobState.CREATED, "it comes again"
    assert (await harness.do(LOAD)).job_state is JobState.LOADED
    assert harness.container.running
    assert (await harness.do(INFER, input=1)).state is OperationState.SUCCEEDED


async def test_a_container_whose_load_was_cut_short_is_stopped_without_asking_its_server() -> None:
    harness = VerbHarness(model(load_timeout_s=0.2))
    await harness.do(CREATE)
    await harness.runtime.start(harness.container.id)
    harness.server.silent = True
    assert (await harness.do(UNLOAD)).error is not None, "a client's UNLOAD asks"
    for _ in range(2):
        assert (await harness.do(UNLOAD, stop_container=True)).job_state is JobState.CREATED
        assert not harness.container.running


@pytest.mark.parametrize("by", ["terminate", "somebody else"])
async def test_of_a_container_that_is_gone_nothing_is_remembered(by: str) -> None:
    harness = self_loading()
    harness.server.becomes_ready = True
    await loaded(harness)
    health = harness.operations.containers.health
    assert (await harness.do(UNLOAD)).job_state is JobState.CREATED
    health.stop_causes[harness.container.id] = ErrorInfo.of(ErrorCode.DISK_QUOTA_EXCEEDED)
    assert health.known == {harness.container.id}
    if by == "terminate":
        assert (await harness.do(Verb.TERMINATE)).job_state is JobState.TERMINATED
    else:
        await harness.runtime.remove(harness.container.id)
        async with TaskGroup() as tasks:
            assert await InventoryHarness(tasks, harness).relist.look()
    assert (health.known, health.stopped, health.stop_causes) == (frozenset(), set(), {})


async def test_a_server_at_another_port_gets_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.model_server.client.PROBE_S", 5.0)  # a refusal needs no time limit
    harness = VerbHarness(model(start_timeout_s=0.3))
    harness.server.moves_away = True
    ended = await harness.do(CREATE)
    assert ended.error is not None
    assert ended.error.code is ErrorCode.NOT_READY
    assert "GET /v2/health/live on the container's port 8080" in ended.error.message
    assert "refused" in ended.error.message
    assert "0.0.0.0" in ended.error.message
