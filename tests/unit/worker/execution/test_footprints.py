"""What a verb tells of the memory that its model takes."""

import asyncio

import pytest

from modelyard.contract.catalog.entries import Profile
from modelyard.contract.states import OperationState, Verb
from tests.fakes.programs import FakeBatch, FakeServer
from tests.fakes.runtime import OWN_MEMORY, FakeContainer
from tests.support.worker.harness import VerbHarness, model
from worker.containers import memory_meter

MIB = 1 << 20
CREATE, LOAD, INFER, UNLOAD, TEMP = (
    Verb.DEPLOY_CREATE,
    Verb.DEPLOY_LOAD,
    Verb.INFER,
    Verb.DEPLOY_UNLOAD,
    Verb.TEMP,
)


@pytest.mark.parametrize("profile", [Profile.HTTP, Profile.OPEN_INFERENCE, Profile.PROCESS])
async def test_a_load_tells_what_its_model_takes(profile: Profile) -> None:
    harness = VerbHarness(model(profile), FakeServer(takes=100 * MIB))
    created = await harness.do(CREATE)
    assert created.footprint is None
    done = await harness.do(LOAD, operation_id="01930a7c-5d2e-7c11-9d7f-3a1f0c5e9b42")
    own = OWN_MEMORY if profile is Profile.PROCESS else 0  # the process is the model
    assert done.footprint is not None
    assert done.footprint.memory == 100 * MIB + own
    assert done.footprint.load == "01930a7c-5d2e-7c11-9d7f-3a1f0c5e9b42"
    assert harness.reports[-1].footprint == done.footprint
    assert (await harness.do(INFER, input=1)).footprint is None
    assert (await harness.do(UNLOAD)).footprint is None
    again = await harness.do(LOAD)
    assert again.footprint is not None
    assert again.footprint.load != done.footprint.load


async def test_a_load_that_finds_the_model_in_memory_tells_nothing() -> None:
    harness = VerbHarness(model(), FakeServer(takes=100 * MIB))
    await harness.do(CREATE)
    await harness.do(LOAD)
    assert (await harness.do(LOAD)).footprint is None


async def test_more_that_was_taken_since_the_load_is_told_by_the_unload() -> None:
    harness = VerbHarness(model(), FakeServer(takes=100 * MIB))
    await harness.do(CREATE)
    loaded = await harness.do(LOAD)
    harness.container.use(OWN_MEMORY + 150 * MIB)
    unloaded = await harness.do(UNLOAD)
    assert loaded.footprint is not None
    assert unloaded.footprint is not None
    assert unloaded.footprint.memory == 150 * MIB
    assert unloaded.footprint.load == loaded.footprint.load


async def test_more_that_was_measured_meanwhile_is_told_by_the_next_inference() -> None:
    harness = VerbHarness(model(), FakeServer(takes=100 * MIB))
    await harness.do(CREATE)
    await harness.do(LOAD)
    harness.container.use(OWN_MEMORY + 150 * MIB)
    await harness.operations.containers.meter.measure(harness.container.id)
    told = await harness.do(INFER, input=1)
    assert told.footprint is not None
    assert told.footprint.memory == 150 * MIB
    assert (await harness.do(INFER, input=1)).footprint is None


async def test_a_load_that_can_not_be_measured_succeeds() -> None:
    harness = VerbHarness(model(), FakeServer(takes=100 * MIB))
    await harness.do(CREATE)
    harness.container.immeasurable = True
    done = await harness.do(LOAD)
    assert (done.state, done.footprint) == (OperationState.SUCCEEDED, None)


async def test_a_load_that_fails_tells_nothing() -> None:
    harness = VerbHarness(model(Profile.HTTP), FakeServer(takes=100 * MIB, load_status=500))
    await harness.do(CREATE)
    failed = await harness.do(LOAD)
    assert (failed.state, failed.footprint) == (OperationState.FAILED, None)


async def test_a_temp_tells_what_its_model_took() -> None:
    harness = VerbHarness(model(), FakeServer(takes=100 * MIB))
    done = await harness.do(TEMP, input=1)
    assert done.footprint is not None
    assert done.footprint.memory == 100 * MIB


class _Worker(FakeBatch):
    """Takes memory, and ends when it was measured."""

    def start(self, container: FakeContainer) -> None:
        super().start(container)
        container.use(70 * MIB)


async def test_a_batch_is_measured_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_meter, "INTERVAL_S", 0.001)
    program = _Worker(exit_code=None, stdout="1\n")
    harness = VerbHarness(model(Profile.BATCH), program)
    meter = harness.operations.containers.meter
    measure = meter.measure

    async def measured(container_id: str) -> None:
        await measure(container_id)
        if harness.container.running:
            harness.container.exit(0)

    monkeypatch.setattr(meter, "measure", measured)
    metering = asyncio.create_task(meter.run())
    done = await harness.do(TEMP)
    metering.cancel()
    await asyncio.wait([metering])
    assert done.footprint is not None
    assert done.footprint.memory == 70 * MIB
