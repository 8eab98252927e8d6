"""One suite for every `ContainerRuntime`: the Docker Engine and the fake behave alike."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial

import httpx2
import pytest

from deploy.local.docker_engine import DockerEngine
from modelyard.contract.catalog.images import full_reference
from tests.conformance.runtime_cases import HOST, IMAGE, NETWORK, Case, Plans, as_json, cases
from tests.fakes.runtime import FakeRuntime, Program
from tests.support.servers.engines import die_at_removing, image_with, memory_mounted_at, volume_on
from tests.support.waiting import eventually
from worker.engine.docker.runtime import DockerRuntime
from worker.engine.plan import ContainerPlan, DatasetMount
from worker.engine.protocol import (
    ContainerFacts,
    ContainerRuntime,
    EngineRefusedError,
    EngineUnavailableError,
    FileTooLargeError,
    FileUnreadableError,
    ImageNotFoundError,
    ImagePullFailedError,
    NameConflictError,
    NoSuchContainerError,
    StartRefusedError,
)

_TIMEOUT_S = 30.0


class RuntimeHarness:
    """One runtime under test, its cases and an HTTP client that reaches its containers."""

    def __init__(
        self,
        runtime: ContainerRuntime,
        transport: httpx2.AsyncBaseTransport | None,
        die_at_removing: Callable[[str], None],
    ) -> None:
        self.runtime = runtime
        self._die_at_removing = die_at_removing
        self.http = httpx2.AsyncClient(transport=transport, trust_env=False, timeout=5)
        self.plans = Plans(f"t{uuid.uuid4().hex[:10]}")
        self.cases = cases()

    def plan(self, case: str, **more: object) -> ContainerPlan:
        return self.plans(self.cases[case], **more)  # type: ignore[arg-type]

    async def run(self, case: str, **more: object) -> str:
        container_id = await self.runtime.create(self.plan(case, **more))
        await self.runtime.start(container_id)
        return container_id

    async def die_at_removing(self, container_id: str) -> None:
        """Have the engine die in the middle of a container's removal, and come back."""
        await asyncio.to_thread(self._die_at_removing, container_id)

    async def close(self) -> None:
        for facts in await self.runtime.list_uninspected():
            if facts.labels and facts.labels.job_id.startswith(self.plans.prefix):
                await self.runtime.remove(facts.id)
        await self.http.aclose()
        await self.runtime.close()


def _fake() -> RuntimeHarness:
    runtime = FakeRuntime(host_id=HOST)
    known: dict[str, Case] = dict(cases())

    def program(plan: ContainerPlan) -> Program:
        return known[plan.env["CASE"]].program

    runtime.images[IMAGE] = program
    return RuntimeHarness(runtime, runtime.transport, runtime.die_at_removing)


def _docker(engine: DockerEngine) -> RuntimeHarness:
    runtime = DockerRuntime(engine.url, host_id=HOST, network=NETWORK, publish=True)
    return RuntimeHarness(runtime, None, partial(die_at_removing, engine))


@pytest.fixture(params=["fake", pytest.param("docker", marks=pytest.mark.server)])
async def harness(request: pytest.FixtureRequest) -> AsyncIterator[RuntimeHarness]:
    made = _fake() if request.param == "fake" else _docker(request.getfixturevalue("engine"))
    async with asyncio.timeout(90):
        await made.runtime.ensure_network()
        try:
            yield made
        finally:
            await made.close()


async def test_the_engine_says_what_it_is(harness: RuntimeHarness) -> None:
    await harness.runtime.ping()
    facts = await harness.runtime.facts()
    assert facts.version
    assert facts.cpus >= 1
    assert facts.memory > 0


async def test_the_network_may_be_ensured_twice(harness: RuntimeHarness) -> None:
    await harness.runtime.ensure_network()
    await harness.runtime.ensure_network()


async def test_an_image_that_is_there_is_not_pulled(harness: RuntimeHarness) -> None:
    progress: list[object] = []
    await harness.runtime.ensure_image(IMAGE, progress.append)
    assert (await harness.runtime.image(IMAGE)) is not None
    assert progress == []


async def test_the_images_of_the_engine_are_listed_by_their_full_references(
    harness: RuntimeHarness,
) -> None:
    assert full_reference(IMAGE) in await harness.runtime.image_names()


async def test_an_image_that_nobody_has_can_not_be_had(harness: RuntimeHarness) -> None:
    absent = "127.0.0.1:1/modelyard/none:never"
    with pytest.raises(ImageNotFoundError):
        await harness.runtime.image(absent)
    with pytest.raises((ImageNotFoundError, ImagePullFailedError)):
        await harness.runtime.ensure_image(absent, lambda _: None)


async def test_creating_twice_gives_one_container(harness: RuntimeHarness) -> None:
    plan = harness.plan("sleeps")
    first = await harness.runtime.create(plan)
    assert await harness.runtime.create(plan) == first
    assert [f.id for f in await harness.runtime.list_own(plan.labels.job_id)] == [first]


async def test_a_container_with_the_prefix_of_its_installation_is_found_by_its_name(
    harness: RuntimeHarness,
) -> None:
    plain = harness.plan("sleeps")
    labels = replace(plain.labels, prefix="modelyard.a_1")
    plan = replace(plain, name=labels.name, labels=labels)
    assert plan.name.startswith("modelyard.a_1-")
    created = await harness.runtime.create(plan)
    assert await harness.runtime.create(plan) == created
    assert (await harness.runtime.inspect(plan.name)).id == created
    [own] = await harness.runtime.list_own(labels.job_id)
    assert own.labels == labels


async def test_a_name_that_another_spec_has_is_a_conflict(harness: RuntimeHarness) -> None:
    await harness.runtime.create(harness.plan("sleeps", spec="spec-1"))
    with pytest.raises(NameConflictError):
        await harness.runtime.create(harness.plan("sleeps", spec="spec-2"))


async def test_creating_without_the_image_names_the_image(harness: RuntimeHarness) -> None:
    with pytest.raises(ImageNotFoundError):
        await harness.runtime.create(harness.plan("sleeps", image="modelyard/none:never"))


async def test_a_created_container_has_never_run(harness: RuntimeHarness) -> None:
    plan = harness.plan("web")
    facts = await harness.runtime.inspect(await harness.runtime.create(plan))
    assert (facts.running, facts.ever_started, facts.exit_code) == (False, False, None)
    assert facts.address is None
    assert facts.name == plan.name
    assert facts.labels == plan.labels


async def test_a_container_is_found_by_its_name_too(harness: RuntimeHarness) -> None:
    plan = harness.plan("sleeps")
    container_id = await harness.runtime.create(plan)
    assert (await harness.runtime.inspect(plan.name)).id == container_id


async def test_a_started_container_answers_at_its_address(harness: RuntimeHarness) -> None:
    container_id = await harness.run("web")
    facts = await harness.runtime.inspect(container_id)
    assert facts.running
    assert facts.address is not None
    assert facts.address.host == "127.0.0.1"
    url = f"http://127.0.0.1:{facts.address.port}/"

    async def answer() -> str | None:
        try:
            return (await harness.http.get(url)).text
        except httpx2.TransportError:
            return None

    assert await eventually(answer, within_s=_TIMEOUT_S, what="an answer") == "here"


async def test_starting_twice_is_success(harness: RuntimeHarness) -> None:
    container_id = await harness.run("sleeps")
    await harness.runtime.start(container_id)
    assert (await harness.runtime.inspect(container_id)).running


async def test_a_stopped_container_can_be_started_again(harness: RuntimeHarness) -> None:
    container_id = await harness.run("sleeps")
    await harness.runtime.stop(container_id, 5)
    await harness.runtime.start(container_id)
    facts = await harness.runtime.inspect(container_id)
    assert facts.running
    assert facts.exit_code is None


async def test_a_container_whose_dataset_went_away_refuses_to_start(
    harness: RuntimeHarness, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("dataset")
    mount = DatasetMount("bind", str(folder), "/data")
    container_id = await harness.runtime.create(harness.plan("unstartable", dataset=mount))
    folder.rmdir()
    with pytest.raises(StartRefusedError):
        await harness.runtime.start(container_id)
    assert not (await harness.runtime.inspect(container_id)).running


async def test_a_command_that_is_not_there_exits_at_once(harness: RuntimeHarness) -> None:
    container_id = await harness.run("absent")
    async with asyncio.timeout(_TIMEOUT_S):
        assert (await harness.runtime.wait_exit(container_id)).code == 127


async def test_stopping_twice_is_success(harness: RuntimeHarness) -> None:
    container_id = await harness.run("sleeps")
    await harness.runtime.stop(container_id, 5)
    await harness.runtime.stop(container_id, 5)
    facts = await harness.runtime.inspect(container_id)
    assert not facts.running
    assert facts.exit_code not in {0, None}


async def test_removing_twice_is_success(harness: RuntimeHarness) -> None:
    container_id = await harness.run("sleeps")
    await harness.runtime.remove(container_id)
    await harness.runtime.remove(container_id)
    with pytest.raises(NoSuchContainerError):
        await harness.runtime.inspect(container_id)


async def test_what_a_broken_off_removal_leaves_is_dead_and_can_be_removed(
    harness: RuntimeHarness,
) -> None:
    plan = harness.plan("sleeps")
    container_id = await harness.run("sleeps")
    await harness.die_at_removing(container_id)
    (left,) = await harness.runtime.list_own(plan.labels.job_id)
    (listed,) = await uninspected(harness)
    for facts in (left, listed):
        assert (facts.id, facts.dead, facts.running) == (container_id, True, False)
    with pytest.raises(NoSuchContainerError):
        await harness.runtime.inspect(container_id)
    await harness.runtime.remove(container_id)
    assert await harness.runtime.list_own(plan.labels.job_id) == []


async def test_what_a_broken_off_removal_leaves_keeps_no_name(harness: RuntimeHarness) -> None:
    plan = harness.plan("sleeps")
    container_id = await harness.run("sleeps")
    await harness.die_at_removing(container_id)
    anew = await harness.runtime.create(plan)
    assert [f.id for f in await harness.runtime.list_own(plan.labels.job_id)] == [anew]
    assert anew != container_id


async def test_an_exit_is_seen_with_its_code(harness: RuntimeHarness) -> None:
    container_id = await harness.run("exits 3")
    async with asyncio.timeout(_TIMEOUT_S):
        end = await harness.runtime.wait_exit(container_id)
    assert (end.code, end.oom_killed) == (3, False)
    assert (await harness.runtime.inspect(container_id)).exit_code == 3


async def test_who_waits_for_an_exit_is_told_when_it_comes(harness: RuntimeHarness) -> None:
    container_id = await harness.run("sleeps")
    async with asyncio.timeout(_TIMEOUT_S), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(harness.runtime.wait_exit(container_id))
        await asyncio.wait((waiting,), timeout=0.2)
        assert not waiting.done()
        await harness.runtime.stop(container_id, 5)
    assert waiting.result().code != 0


async def test_who_waits_for_an_exit_is_told_of_a_removal(harness: RuntimeHarness) -> None:
    container_id = await harness.run("sleeps")
    async with asyncio.timeout(_TIMEOUT_S), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(_end_of(harness.runtime, container_id))
        await asyncio.wait((waiting,), timeout=0.2)
        await harness.runtime.remove(container_id)
    # The engine kills it first: that may be seen, or only that it is gone.
    assert waiting.result() in {137, "gone"}


async def _end_of(runtime: ContainerRuntime, container_id: str) -> int | str:
    try:
        return (await runtime.wait_exit(container_id)).code
    except NoSuchContainerError:
        return "gone"


class Hearing:
    """Somebody who watches, and how often there was a change."""

    def __init__(self, runtime: ContainerRuntime, tasks: asyncio.TaskGroup) -> None:
        self.changes = 0
        self.watching = tasks.create_task(runtime.watch(self._hear))

    def _hear(self) -> None:
        self.changes += 1

    async def more_than(self, changes: int) -> int:
        async def heard() -> int | None:
            return self.changes if self.changes > changes else None

        return await eventually(heard, within_s=5.0, what="the word of a change")


@pytest.mark.parametrize("change", ["exit", "stop", "remove"])
async def test_who_watches_is_told_at_the_beginning_and_of_every_end(
    harness: RuntimeHarness, change: str
) -> None:
    container_id = await harness.run("sleeps")
    async with asyncio.timeout(_TIMEOUT_S), asyncio.TaskGroup() as tasks:
        hearing = Hearing(harness.runtime, tasks)
        heard = await hearing.more_than(0)
        if change == "exit":
            await harness.run("exits 3", job="other")
        elif change == "stop":
            await harness.runtime.stop(container_id, 0)
        else:
            await harness.runtime.remove(container_id)
        await hearing.more_than(heard)
        hearing.watching.cancel()


async def test_when_the_word_of_an_exit_comes_it_is_true(harness: RuntimeHarness) -> None:
    container_id = await harness.run("sleeps")
    async with asyncio.timeout(_TIMEOUT_S), asyncio.TaskGroup() as tasks:
        hearing = Hearing(harness.runtime, tasks)
        heard = await hearing.more_than(0)
        stopping = tasks.create_task(harness.runtime.stop(container_id, 0))
        await hearing.more_than(heard)
        assert not (await harness.runtime.inspect(container_id)).running
        await stopping
        hearing.watching.cancel()


async def test_the_list_has_only_own_containers_of_the_job(harness: RuntimeHarness) -> None:
    await harness.runtime.create(harness.plan("sleeps", job="a", generation=1))
    await harness.runtime.create(harness.plan("sleeps", job="a", generation=2))
    await harness.runtime.create(harness.plan("sleeps", job="b"))
    own = await harness.runtime.list_own(f"{harness.plans.prefix}-a")
    assert sorted(f.labels.generation for f in own if f.labels) == [1, 2]
    every = [f for f in await harness.runtime.list_uninspected() if harness.plans.prefix in f.name]
    assert len(every) == 3


async def uninspected(harness: RuntimeHarness) -> list[ContainerFacts]:
    """Return the test's own containers as the engine lists them."""
    listed = await harness.runtime.list_uninspected()
    return [facts for facts in listed if harness.plans.prefix in facts.name]


async def test_what_the_list_tells_of_a_container_is_what_an_inspection_tells(
    harness: RuntimeHarness,
) -> None:
    plan = harness.plan("web", job="created")
    labels = replace(plan.labels, strict=True, disk=1 << 20)
    made = [
        await harness.runtime.create(replace(plan, labels=labels)),
        await harness.run("web", job="runs"),
        await harness.run("sleeps", job="has-no-port", read_only=False),
        await harness.run("exits 3", job="exited"),
        await harness.run("sleeps", job="stopped"),
    ]
    await harness.runtime.wait_exit(made[3])
    await harness.runtime.stop(made[4], 0.0)
    inspected = [await harness.runtime.inspect(one) for one in made]
    assert inspected[0].labels == labels
    assert inspected[1].address is not None
    assert (inspected[3].exit_code, inspected[4].running) == (3, False)
    empty = [replace(one, mounts=(), devices=(), fills_disk=False) for one in inspected]
    told = {one.id: replace(one, inspected=False, oom_killed=False) for one in empty}

    async def the_same() -> bool:
        return {facts.id: facts for facts in await uninspected(harness)} == told

    # The engine tells of an exit a moment before its list shows it.
    await eventually(the_same, what="the same in the list")


async def test_the_log_tail_is_the_end_of_both_streams(harness: RuntimeHarness) -> None:
    container_id = await harness.run("talks", kept_folder="/tmp")
    await harness.runtime.wait_exit(container_id)
    tail = await harness.runtime.log_tail(container_id, lines=5)
    assert len(tail.splitlines()) == 5
    assert "last" in tail or "err" in tail


async def test_the_end_of_stdout_is_without_stderr(harness: RuntimeHarness) -> None:
    container_id = await harness.run("talks", kept_folder="/tmp")
    await harness.runtime.wait_exit(container_id)
    out = await harness.runtime.stdout_tail(container_id, max_bytes=1 << 20)
    assert out.splitlines()[-1] == b"last"
    assert b"err" not in out.splitlines()


async def test_a_line_longer_than_a_log_entry_comes_whole(harness: RuntimeHarness) -> None:
    container_id = await harness.run("huge line")
    await harness.runtime.wait_exit(container_id)
    out = await harness.runtime.stdout_tail(container_id, max_bytes=1 << 20)
    assert out == b"x" * 100_000 + b"end\n"


async def test_of_a_long_stdout_only_the_end_is_kept(harness: RuntimeHarness) -> None:
    container_id = await harness.run("many lines")
    await harness.runtime.wait_exit(container_id)
    out = await harness.runtime.stdout_tail(container_id, max_bytes=50_000)
    assert 50_000 <= len(out) < 150_000
    assert out.endswith(b"9" * 9_999 + b"\n")


async def test_a_file_of_an_exited_container_can_be_read(harness: RuntimeHarness) -> None:
    container_id = await harness.run("talks", kept_folder="/tmp")
    await harness.runtime.wait_exit(container_id)
    body = await harness.runtime.read_file(container_id, "/tmp/result.json", max_bytes=1 << 20)
    assert as_json(body) == {"ok": True}


async def test_a_file_that_is_too_large_is_refused(harness: RuntimeHarness) -> None:
    container_id = await harness.run("talks", kept_folder="/tmp")
    await harness.runtime.wait_exit(container_id)
    with pytest.raises(FileTooLargeError):
        await harness.runtime.read_file(container_id, "/tmp/result.json", max_bytes=4)


@pytest.mark.parametrize("path", ["/tmp/none", "/tmp/link", "/tmp/folder"])
async def test_what_is_not_a_regular_file_can_not_be_read(
    harness: RuntimeHarness, path: str
) -> None:
    container_id = await harness.run("talks", kept_folder="/tmp")
    await harness.runtime.wait_exit(container_id)
    with pytest.raises(FileUnreadableError):
        await harness.runtime.read_file(container_id, path, max_bytes=1 << 20)


async def test_a_missing_volume_is_missing(harness: RuntimeHarness) -> None:
    assert await harness.runtime.volume(f"{harness.plans.prefix}-none") is None


@pytest.mark.parametrize(
    "ref",
    [
        "../images/prune",
        "abc?force=1",
        "0123456789ab\n",
        "%2e%2e",
        "0123456789ab\x00",
        "modelyard-é-1",
        "modelyard-../x-1",
        "",
    ],
)
async def test_what_can_not_be_an_id_never_reaches_the_engine(
    harness: RuntimeHarness, ref: str
) -> None:
    for call in (harness.runtime.inspect, harness.runtime.start, harness.runtime.remove):
        with pytest.raises(NoSuchContainerError):
            await call(ref)
    with pytest.raises(NoSuchContainerError):
        await harness.runtime.read_file(ref, "/etc/passwd", max_bytes=1)


async def test_a_gone_container_has_no_log_no_exit_and_no_files(harness: RuntimeHarness) -> None:
    gone = "0123456789abcdef"
    for call in (
        harness.runtime.inspect(gone),
        harness.runtime.start(gone),
        harness.runtime.stop(gone, 1),
        harness.runtime.wait_exit(gone),
        harness.runtime.log_tail(gone, lines=1),
    ):
        with pytest.raises(NoSuchContainerError):
            await call


async def test_an_engine_that_is_away_is_unavailable() -> None:
    runtime = DockerRuntime("unix:///nowhere/docker.sock", host_id=HOST, network="n", publish=True)
    try:
        for call in (runtime.ping(), runtime.list_uninspected(), runtime.remove("0123456789ab")):
            with pytest.raises(EngineUnavailableError):
                await call
    finally:
        await runtime.close()


async def test_a_dataset_is_mounted_and_read_only(
    harness: RuntimeHarness, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("dataset")
    plan = harness.plan("sleeps", dataset=DatasetMount("bind", str(folder), "/data"))
    facts = await harness.runtime.inspect(await harness.runtime.create(plan))
    mounts = [(m.kind, m.source, m.target, m.read_only) for m in facts.mounts]
    assert ("bind", str(folder), "/data", True) in mounts


async def test_what_a_container_has_mounted_is_seen_with_what_is_in_memory(
    harness: RuntimeHarness,
) -> None:
    plan = harness.plan("sleeps", kept_folder="/opt")
    facts = await harness.runtime.inspect(await harness.runtime.create(plan))
    seen = {(m.kind, m.target, m.read_only, m.on_disk) for m in facts.mounts}
    assert seen == {("volume", "/opt", False, True), ("tmpfs", "/tmp", False, False)}
    assert facts.fills_disk


async def test_a_read_only_container_without_volumes_fills_no_disk(harness: RuntimeHarness) -> None:
    facts = await harness.runtime.inspect(await harness.runtime.create(harness.plan("sleeps")))
    assert not facts.fills_disk
    writes = harness.plan("sleeps", job="writes", read_only=False)
    assert (await harness.runtime.inspect(await harness.runtime.create(writes))).fills_disk


async def test_what_is_written_to_the_root_and_to_volumes_is_measured(
    harness: RuntimeHarness,
) -> None:
    # /var/tmp is on the root file system, /tmp on a volume here.
    env = {"FOLDERS": "/tmp,/var/tmp"}
    container_id = await harness.run("fills the disk", read_only=False, kept_folder="/tmp", env=env)

    async def all_of_it() -> bool:
        facts = await harness.runtime.inspect(container_id)
        assert facts.running
        used = await harness.runtime.written(container_id)
        sizes = await harness.runtime.volume_sizes()
        used += sum(sizes.get(mount.source, 0) for mount in facts.mounts)
        return 16 << 20 <= used < 17 << 20

    await eventually(all_of_it, within_s=_TIMEOUT_S)


async def test_memory_that_a_container_uses_is_measured_until_it_stops(
    harness: RuntimeHarness,
) -> None:
    container_id = await harness.run("holds memory")

    async def held() -> bool:
        return "held" in await harness.runtime.log_tail(container_id, lines=5)

    await eventually(held, within_s=_TIMEOUT_S)
    reading = await harness.runtime.memory(container_id)
    assert 32 << 20 <= reading.used <= 48 << 20
    assert reading.highest is None or reading.highest >= 32 << 20
    await harness.runtime.stop(container_id, 0.0)
    assert (await harness.runtime.memory(container_id)).in_use == 0


async def test_what_is_gone_is_not_measured(harness: RuntimeHarness) -> None:
    plan = harness.plan("sleeps", read_only=False)
    facts = await harness.runtime.inspect(await harness.runtime.create(plan))
    await harness.runtime.remove(facts.id)
    with pytest.raises(NoSuchContainerError):
        await harness.runtime.written(facts.id)
    with pytest.raises(NoSuchContainerError):
        await harness.runtime.memory(facts.id)


async def test_an_image_that_is_not_there_brings_nothing(harness: RuntimeHarness) -> None:
    assert (await harness.runtime.image(IMAGE)).volumes == ()
    with pytest.raises(ImageNotFoundError):
        await harness.runtime.image("modelyard/none:never")


@pytest.mark.parametrize("code", [0, 3])
async def test_a_child_that_is_killed_for_memory_leaves_the_parent_its_own_end(
    harness: RuntimeHarness, code: int
) -> None:
    container_id = await harness.run(f"loses a child and exits {code}")
    async with asyncio.timeout(_TIMEOUT_S):
        end = await harness.runtime.wait_exit(container_id)
    assert (end.code, end.oom_killed) == (code, True)
    out = await harness.runtime.stdout_tail(container_id, max_bytes=100)
    assert as_json(out) == {"ok": 1}


@pytest.mark.parametrize(("case", "full"), [("talks too much", True), ("many lines", False)])
async def test_a_log_that_has_dropped_its_beginning_is_known(
    harness: RuntimeHarness, case: str, *, full: bool
) -> None:
    container_id = await harness.run(case)
    async with asyncio.timeout(_TIMEOUT_S):
        await harness.runtime.wait_exit(container_id)
    assert (await harness.runtime.stdout_tail(container_id, max_bytes=100) == b"") is full
    assert await harness.runtime.log_is_full(container_id) is full


async def test_labels_of_ours_on_a_container_of_another_name_are_not_ours(
    harness: RuntimeHarness,
) -> None:
    plan = harness.plan("sleeps", name=f"modelyard-{harness.plans.prefix}-of-an-operator")
    container_id = await harness.runtime.create(replace(plan))
    try:
        assert await harness.runtime.list_own(plan.labels.job_id) == []
        assert await uninspected(harness) == []
        assert (await harness.runtime.inspect(container_id)).labels is None
    finally:
        await harness.runtime.remove(container_id)


@pytest.fixture
async def docker(engine: DockerEngine) -> AsyncIterator[RuntimeHarness]:
    made = _docker(engine)
    async with asyncio.timeout(90):
        await made.runtime.ensure_network()
        try:
            yield made
        finally:
            await made.close()


_LOOK_AROUND = """
import json, os
seen = {"uid": os.getuid(), "gid": os.getgid(), "forks": 0}
status = dict(l.split(":\\t") for l in open("/proc/self/status").read().splitlines() if ":\\t" in l)
seen["caps"] = int(status["CapEff"], 16)
seen["no_new_privs"] = status["NoNewPrivs"]
try:
    open("/etc/written", "w"); seen["root"] = "writable"
except OSError:
    seen["root"] = "read-only"
open("/tmp/written", "w").close()
try:
    while seen["forks"] < 200:
        if os.fork() == 0:
            import signal
            signal.pause()
        seen["forks"] += 1
except OSError:
    seen["bomb"] = "contained"
print(json.dumps(seen), flush=True)
"""


async def test_a_container_is_confined(docker: RuntimeHarness) -> None:
    plan = replace(docker.plan("sleeps"), command=("python3", "-c", _LOOK_AROUND))
    container_id = await docker.runtime.create(plan)
    await docker.runtime.start(container_id)
    await docker.runtime.wait_exit(container_id)
    seen = as_json(await docker.runtime.stdout_tail(container_id, max_bytes=65_536))
    assert isinstance(seen, dict)
    assert seen.pop("forks") < 32
    assert seen == {
        "uid": 65534,
        "gid": 65534,
        "caps": 0,
        "no_new_privs": "1",
        "root": "read-only",
        "bomb": "contained",
    }


async def test_a_container_that_takes_too_much_memory_is_said_to(docker: RuntimeHarness) -> None:
    hog = "held = b'\\x01' * (200 << 20)"
    plan = replace(docker.plan("sleeps"), command=("python3", "-c", hog))
    container_id = await docker.runtime.create(plan)
    await docker.runtime.start(container_id)
    end = await docker.runtime.wait_exit(container_id)
    assert (end.code, end.oom_killed) == (137, True)


async def test_what_an_image_declares_is_known(
    docker: RuntimeHarness, engine: DockerEngine
) -> None:
    image = await asyncio.to_thread(image_with, engine, IMAGE, "VOLUME /vol", "ENV A=b")
    facts = await docker.runtime.image(image)
    assert facts.volumes == ("/vol",)
    assert {"A", "HOME", "PATH"} <= facts.env


async def test_an_image_without_a_name_is_not_listed(
    docker: RuntimeHarness, engine: DockerEngine
) -> None:
    named = await asyncio.to_thread(image_with, engine, IMAGE, "ENV A=listed")
    names = await docker.runtime.image_names()
    assert full_reference(named) in names
    assert not any("<none>" in name for name in names)


async def test_all_volumes_are_listed_with_what_they_are_made_of(
    docker: RuntimeHarness, engine: DockerEngine
) -> None:
    name = f"{docker.plans.prefix}-listed"
    assert name not in await docker.runtime.all_volumes()
    with volume_on(engine, name) as there:
        assert (await docker.runtime.all_volumes())[there] == await docker.runtime.volume(there)


async def test_what_a_volume_is_made_of_is_known(
    docker: RuntimeHarness, engine: DockerEngine
) -> None:
    options = {"type": "none", "o": "bind", "device": "/"}
    with (
        volume_on(engine, f"{docker.plans.prefix}-plain") as plain,
        volume_on(engine, f"{docker.plans.prefix}-host", **options) as host,
    ):
        facts = await docker.runtime.volume(plain)
        assert facts is not None
        assert (facts.driver, facts.options) == ("local", {})
        facts = await docker.runtime.volume(host)
        assert facts is not None
        assert facts.options == options


async def test_the_image_of_ours_puts_no_label_on_a_container(
    docker: RuntimeHarness, engine: DockerEngine
) -> None:
    forged = ("modelyard.lease=strict", "modelyard.port=22", "modelyard.ready=/x")
    image = await asyncio.to_thread(image_with, engine, IMAGE, *(f"LABEL {it}" for it in forged))
    plan = docker.plan("sleeps", image=image)
    facts = await docker.runtime.inspect(await docker.runtime.create(plan))
    assert facts.labels == plan.labels
    assert facts.labels is not None
    assert not facts.labels.strict


_LOOK_BELOW = """
import json, os
seen = {"files": sorted(os.listdir("/data/below")), "written": []}
for place in ("/data", "/data/below"):
    try:
        open(f"{place}/new", "w").close(); seen["written"].append(place)
    except OSError:
        pass
print(json.dumps(seen))
"""


async def test_what_is_mounted_below_a_dataset_is_neither_seen_nor_written_to(
    docker: RuntimeHarness, engine: DockerEngine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("dataset")
    folder.chmod(0o777)
    (folder / "below").mkdir()
    mount = DatasetMount("bind", str(folder), "/data")
    plan = docker.plan("sleeps", dataset=mount)
    container_id = await docker.runtime.create(
        replace(plan, command=("python3", "-c", _LOOK_BELOW))
    )
    with memory_mounted_at(engine, folder / "below"):
        await docker.runtime.start(container_id)
        await docker.runtime.wait_exit(container_id)
    out = await docker.runtime.stdout_tail(container_id, max_bytes=1000)
    assert as_json(out) == {"files": [], "written": []}


_RUN_FROM_TMP = """
import json, os, subprocess
with open("/tmp/x", "w") as f: f.write("#!/bin/sh\\necho ran\\n")
os.chmod("/tmp/x", 0o755)
flags = [l.split()[5] for l in open("/proc/self/mountinfo") if l.split()[4] == "/tmp"]
print(json.dumps([subprocess.check_output(["/tmp/x"]).decode(), "nosuid,nodev" in flags[0]]))
"""


async def test_what_lies_in_tmp_can_be_run(docker: RuntimeHarness) -> None:
    plan = replace(docker.plan("sleeps"), command=("python3", "-c", _RUN_FROM_TMP))
    container_id = await docker.runtime.create(plan)
    await docker.runtime.start(container_id)
    await docker.runtime.wait_exit(container_id)
    out = await docker.runtime.stdout_tail(container_id, max_bytes=1000)
    assert as_json(out) == ["ran\n", True]


_END_AT_USR1 = """
import signal
signal.signal(signal.SIGUSR1, lambda *_: exit(42))
print("waits", flush=True)
while True: signal.pause()
"""


async def test_a_container_is_stopped_by_the_signal_of_its_image(
    docker: RuntimeHarness, engine: DockerEngine
) -> None:
    image = await asyncio.to_thread(image_with, engine, IMAGE, stop_signal="SIGUSR1")
    plan = replace(docker.plan("sleeps", image=image), command=("python3", "-c", _END_AT_USR1))
    container_id = await docker.runtime.create(plan)
    await docker.runtime.start(container_id)

    async def waits() -> bool:
        return await docker.runtime.log_tail(container_id, lines=1) != ""

    await eventually(waits)
    await docker.runtime.stop(container_id, 20)
    assert (await docker.runtime.inspect(container_id)).exit_code == 42


@pytest.mark.parametrize("path", ["/etc/passwd/r", "/etc/passwd/", "/proc/1/status", "/nope/r"])
async def test_a_result_file_that_can_not_be_there_is_unreadable(
    docker: RuntimeHarness, path: str
) -> None:
    container_id = await docker.run("exits 3")
    await docker.runtime.wait_exit(container_id)
    with pytest.raises(FileUnreadableError):
        await docker.runtime.read_file(container_id, path, max_bytes=1 << 20)


async def test_an_image_name_that_the_engine_does_not_read_is_refused_for_good(
    docker: RuntimeHarness,
) -> None:
    with pytest.raises(EngineRefusedError, match="lowercase"):
        await docker.runtime.ensure_image("MyOrg/model:1", lambda _: None)


async def test_a_link_on_the_way_to_a_path_is_found(docker: RuntimeHarness) -> None:
    container_id = await docker.runtime.create(docker.plan("sleeps"))
    # On Debian, /var/run and /bin are links; the second one leads to a folder of the same depth.
    expected = {"/var/run/x/y": "/var/run", "/bin": "/bin", "/opt/probe": None, "/nope/x": None}
    for path, link in expected.items():
        assert await docker.runtime.link_at(container_id, path) == link
