"""An unload is over when the memory is free; what is kept ends the container."""

import pytest

from modelyard.contract.catalog.entries import Profile
from modelyard.contract.errors import ErrorCode
from modelyard.contract.states import JobState, OperationState, Verb
from tests.fakes.devices import GIB, FakeDevices, devices
from tests.fakes.programs import FakeServer
from tests.fakes.runtime import OWN_MEMORY
from tests.support.worker.harness import VerbHarness, model
from worker.attempts.attempt import Outcome
from worker.containers.lifecycle import ContainerLifecycle
from worker.devices import taints

MIB = 1 << 20
GPU = "GPU-0"
TAKES = 200 * MIB
CREATE, LOAD, INFER, UNLOAD, TERMINATE = (
    Verb.DEPLOY_CREATE,
    Verb.DEPLOY_LOAD,
    Verb.INFER,
    Verb.DEPLOY_UNLOAD,
    Verb.TERMINATE,
)


def harness(profile: Profile = Profile.OPEN_INFERENCE, **resources: object) -> VerbHarness:
    spec = model(profile, resources={"memory": 256 * MIB, **resources})
    return VerbHarness(spec, FakeServer(takes=TAKES))


async def loaded(made: VerbHarness) -> VerbHarness:
    for verb in (CREATE, LOAD):
        assert (await made.do(verb)).state is OperationState.SUCCEEDED
    return made


def kept(outcome: Outcome) -> list[str]:
    assert outcome.error is not None
    assert outcome.error.code is ErrorCode.MEMORY_NOT_FREED
    assert (outcome.state, outcome.job_state) == (OperationState.FAILED, JobState.CREATED)
    found: list[str] = outcome.error.detail["kept"]
    return found


@pytest.mark.parametrize("profile", [Profile.HTTP, Profile.OPEN_INFERENCE, Profile.PROCESS])
@pytest.mark.parametrize("resident", ["auto", TAKES])
async def test_a_model_that_gives_its_memory_back_is_unloaded(
    profile: Profile, resident: object
) -> None:
    made = await loaded(harness(profile, resident_memory=resident))
    done = await made.do(UNLOAD)
    assert (done.state, done.job_state) == (OperationState.SUCCEEDED, JobState.CREATED)
    assert made.container.running is (profile is not Profile.PROCESS)


@pytest.mark.parametrize("resident", ["auto", TAKES])
async def test_a_server_that_keeps_its_memory_is_stopped_and_the_next_load_starts_it(
    resident: object,
) -> None:
    made = await loaded(harness(resident_memory=resident))
    made.server.keeps = True
    done = await made.do(UNLOAD)
    (what,) = kept(done)
    assert what.endswith(" MiB of the host's memory")
    assert not made.container.running
    assert not made.container.removed
    made.server.keeps = False
    again = await made.do(LOAD)
    assert (again.state, again.job_state) == (OperationState.SUCCEEDED, JobState.LOADED)
    assert (await made.do(INFER, input=1)).state is OperationState.SUCCEEDED


async def test_memory_that_is_not_held_for_the_model_alone_may_be_kept() -> None:
    made = await loaded(harness())
    made.server.keeps = True
    assert (await made.do(UNLOAD)).state is OperationState.SUCCEEDED


async def test_a_server_may_keep_what_remains_held_for_its_container() -> None:
    # 100 MiB are kept for the unloaded container, and it uses about that.
    made = await loaded(harness(memory=300 * MIB, resident_memory=TAKES))
    made.server.rests = 95 * MIB
    assert (await made.do(UNLOAD)).state is OperationState.SUCCEEDED
    assert made.container.running


async def test_memory_that_comes_back_a_little_later_is_waited_for() -> None:
    made = await loaded(harness(resident_memory="auto"))
    made.server.keeps = True
    looks = 0
    asked = made.runtime.memory

    async def memory(container_id: str) -> object:
        nonlocal looks
        looks += 1
        if looks == 4:
            made.container.use(OWN_MEMORY)
        return await asked(container_id)

    made.runtime.memory = memory  # type: ignore[method-assign, assignment]
    assert (await made.do(UNLOAD)).state is OperationState.SUCCEEDED
    assert looks >= 4


async def test_an_unload_that_can_not_be_measured_is_taken_at_the_servers_word() -> None:
    made = await loaded(harness(resident_memory="auto"))
    made.server.keeps = True
    made.container.immeasurable = True
    assert (await made.do(UNLOAD)).state is OperationState.SUCCEEDED


async def test_a_declared_size_is_measured_after_a_restart_of_the_worker_too() -> None:
    made = await loaded(harness(resident_memory=TAKES))
    made.server.keeps = True
    made.restarted()
    assert kept(await made.do(UNLOAD))


@pytest.mark.parametrize(("rests", "is_enough"), [(50 * MIB, True), (52 * MIB, False)])
async def test_a_server_may_keep_libraries_if_nothing_remains_held_for_its_container(
    rests: int, *, is_enough: bool
) -> None:
    made = await loaded(harness(memory=TAKES, resident_memory=TAKES))
    made.server.rests = rests
    done = await made.do(UNLOAD)
    assert done.state is (OperationState.SUCCEEDED if is_enough else OperationState.FAILED)
    assert made.container.running is is_enough


async def test_a_server_that_used_much_before_its_load_may_use_it_afterwards() -> None:
    made = harness(memory=TAKES, resident_memory=TAKES)
    await made.do(CREATE)
    made.container.use(100 * MIB)
    await made.do(LOAD)
    made.server.rests = 100 * MIB
    assert (await made.do(UNLOAD)).state is OperationState.SUCCEEDED
    assert made.container.running


@pytest.mark.parametrize(("rests", "is_enough"), [(150 * MIB, True), (195 * MIB, False)])
async def test_after_a_restart_of_the_worker_what_was_given_back_is_enough(
    rests: int, *, is_enough: bool
) -> None:
    made = await loaded(harness(memory=TAKES, resident_memory=TAKES))
    made.restarted()
    made.server.rests = rests
    done = await made.do(UNLOAD)
    assert done.state is (OperationState.SUCCEEDED if is_enough else OperationState.FAILED)


class WithGpu:
    """A harness whose container has a device, on which its only process holds memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = harness(gpus=1)
        self.made.devices = FakeDevices(devices(8 * GIB))
        self.operations = self.made.restarted()
        self.container_id = ""
        monkeypatch.setattr(taints, "TOLD_S", 0.01)
        self._patch = monkeypatch
        self._watch()

    def _watch(self) -> None:
        for watcher in (self.watch.meter._holders, self.watch.taints):
            self._patch.setattr(watcher, "_containers", self.containers)

    def restarted(self) -> None:
        """Go on as another process."""
        self.operations = self.made.restarted()
        self._watch()

    @property
    def watch(self) -> ContainerLifecycle:
        return self.operations.containers

    def containers(self, pid: int) -> set[str]:
        return {self.container_id} if pid == 1 else set()

    async def loaded(self, *, before: int = 0, after: int = 4 * GIB) -> None:
        await self.made.do(CREATE, devices=(GPU,))
        self.container_id = self.made.container.id
        self.hold(before)
        self.made.server.before_answer = lambda: self._answer(after)
        await self.made.do(LOAD, devices=(GPU,))

    def _answer(self, after: int) -> None:
        if self.made.server.requests[-1].endswith("/load"):
            self.hold(after)

    def hold(self, amount: int) -> None:
        self.made.devices.running = {GPU: {1: amount}} if amount else {}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> WithGpu:
    return WithGpu(monkeypatch)


async def test_device_memory_that_is_given_back_but_for_a_context_is_enough(
    gpu: WithGpu,
) -> None:
    await gpu.loaded()
    gpu.hold(600 * MIB)
    assert (await gpu.made.do(UNLOAD, devices=(GPU,))).state is OperationState.SUCCEEDED
    assert gpu.made.container.running


async def test_device_memory_that_was_held_before_the_load_may_be_held_after_it(
    gpu: WithGpu,
) -> None:
    await gpu.loaded(before=2 * GIB, after=6 * GIB)
    gpu.hold(2 * GIB + 600 * MIB)
    assert (await gpu.made.do(UNLOAD, devices=(GPU,))).state is OperationState.SUCCEEDED


async def test_device_memory_that_is_kept_ends_the_container(gpu: WithGpu) -> None:
    await gpu.loaded()
    stopping = gpu.made.server.terminate

    def terminate(container: object) -> None:
        gpu.hold(0)
        stopping(container)  # type: ignore[arg-type]

    gpu.made.server.terminate = terminate  # type: ignore[method-assign]
    done = await gpu.made.do(UNLOAD, devices=(GPU,))
    assert kept(done) == [f"4 GiB on the device {GPU}"]
    assert not gpu.made.container.running
    assert gpu.watch.taints.shown(()) == ()


@pytest.mark.parametrize(("held", "is_enough"), [(2 * GIB, True), (4 * GIB, False)])
async def test_after_a_restart_of_the_worker_device_memory_that_was_given_back_is_enough(
    gpu: WithGpu, held: int, *, is_enough: bool
) -> None:
    await gpu.loaded()
    gpu.restarted()
    gpu.made.server.before_answer = lambda: gpu.hold(held)
    done = await gpu.made.do(UNLOAD, devices=(GPU,))
    assert done.state is (OperationState.SUCCEEDED if is_enough else OperationState.FAILED)


@pytest.mark.parametrize("verb", [UNLOAD, TERMINATE])
async def test_device_memory_that_outlives_its_container_taints_the_device(
    gpu: WithGpu, verb: Verb
) -> None:
    await gpu.loaded()
    done = await gpu.made.do(verb, devices=(GPU,))
    if verb is TERMINATE:
        assert (done.state, done.job_state) == (OperationState.SUCCEEDED, JobState.TERMINATED)
    (told,) = gpu.watch.taints.shown(())
    assert told.tainted is not None
    assert (told.tainted.memory, told.tainted.job_id) == (4 * GIB, "job-1")


async def test_a_container_without_devices_is_removed_without_asking_the_driver() -> None:
    made = await loaded(harness())
    made.devices.broken = "nobody may ask"
    assert (await made.do(TERMINATE)).state is OperationState.SUCCEEDED
