"""What loads take: the most, beyond what the container used before, told once."""

import asyncio

import pytest

from modelyard.contract.capacity.footprints import Footprint
from modelyard.contract.ids import new_operation_id
from modelyard.contract.messages import HostCommand
from modelyard.contract.states import Verb
from tests.fakes.devices import GIB, FakeDevices, devices
from tests.fakes.programs import FakeServer
from tests.fakes.runtime import OWN_MEMORY, FakeContainer
from tests.support.waiting import eventually
from tests.support.worker.harness import VerbHarness
from worker.containers import memory_meter
from worker.containers.memory_meter import MemoryMeter
from worker.devices.holders import DeviceHolders
from worker.engine.protocol import ContainerFacts

MIB = 1 << 20
GPU = "GPU-0"


class Metered:
    """A container that runs, and a meter that has never seen it."""

    def __init__(self) -> None:
        self.harness = VerbHarness(program=FakeServer())
        self.runtime = self.harness.runtime
        self.devices = FakeDevices(devices(8 * GIB, 8 * GIB))
        self.pids: set[int] = {1}
        holders = DeviceHolders(
            self.devices, containers=lambda pid: {self.container.id} if pid in self.pids else ()
        )
        self.meter = MemoryMeter(self.runtime, holders)

    async def start(self) -> None:
        await self.harness.do(Verb.DEPLOY_CREATE)

    @property
    def container(self) -> FakeContainer:
        return self.harness.container

    @property
    def facts(self) -> ContainerFacts:
        return self.container.facts()

    def command(self) -> HostCommand:
        operation_id = new_operation_id()
        return self.harness.command(Verb.DEPLOY_LOAD, operation_id=operation_id, devices=(GPU,))

    async def load(self, memory: int, device: int = 0) -> Footprint | None:
        """Begin a load, take memory, measure; return the news."""
        await self.meter.begin(self.command(), self.facts)
        self.take(memory, device)
        return await self.measured()

    def take(self, memory: int, device: int = 0) -> None:
        self.container.use(OWN_MEMORY + memory)
        self.devices.running[GPU] = {1: device} if device else {}

    async def measured(self) -> Footprint | None:
        await self.meter.measure(self.container.id)
        return self.meter.news(self.container.id)


@pytest.fixture
async def metered() -> Metered:
    made = Metered()
    await made.start()
    return made


async def test_a_load_takes_what_the_container_did_not_use_before(metered: Metered) -> None:
    metered.devices.running[GPU] = {1: GIB}
    metered.devices.running["GPU-1"] = {1: GIB}  # not bound to it
    news = await metered.load(100 * MIB, 5 * GIB)
    assert news is not None
    assert (news.memory, news.devices) == (100 * MIB, {GPU: 4 * GIB})


async def test_the_most_counts_also_if_it_was_given_back_again(metered: Metered) -> None:
    await metered.meter.begin(metered.command(), metered.facts)
    metered.take(300 * MIB)
    metered.take(100 * MIB)
    news = await metered.measured()
    assert news is not None
    assert news.memory == 300 * MIB
    metered.take(0)
    assert await metered.measured() is None


async def test_a_peak_of_an_earlier_load_is_not_one_of_the_next(metered: Metered) -> None:
    await metered.load(300 * MIB)
    metered.meter.forget(metered.container.id)
    metered.take(0)
    news = await metered.load(100 * MIB)
    assert news is not None
    assert news.memory == 100 * MIB


async def test_what_a_server_keeps_after_an_unload_belongs_to_its_model(metered: Metered) -> None:
    await metered.load(100 * MIB, 4 * GIB)
    metered.meter.forget(metered.container.id)
    metered.take(30 * MIB, GIB)
    news = await metered.load(100 * MIB, 4 * GIB)
    assert news is not None
    assert (news.memory, news.devices) == (100 * MIB, {GPU: 4 * GIB})


async def test_only_more_is_news(metered: Metered) -> None:
    first = await metered.load(100 * MIB, GIB)
    assert metered.meter.news(metered.container.id) is None
    metered.take(100 * MIB + MIB // 2, GIB)
    assert await metered.measured() is None
    metered.take(100 * MIB, GIB * 3 // 2)
    more = await metered.measured()
    assert first is not None
    assert more is not None
    assert more.load == first.load
    assert more.devices == {GPU: GIB * 3 // 2}


async def test_a_model_that_is_used_is_measured_soon_and_one_that_rests_is_not(
    metered: Metered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_meter, "INTERVAL_S", 0.01)
    await metered.load(100 * MIB)
    asked = metered.runtime.memory
    looks: list[str] = []

    async def memory(container_id: str) -> object:
        looks.append(container_id)
        return await asked(container_id)

    monkeypatch.setattr(metered.runtime, "memory", memory)
    running = asyncio.create_task(metered.meter.run())
    metered.take(200 * MIB)
    metered.meter.use(metered.container.id)

    async def seen() -> bool:
        news = metered.meter.news(metered.container.id)
        return news is not None and news.memory == 200 * MIB

    await eventually(seen, what="the measurement")
    assert len(looks) == 1
    running.cancel()
    await asyncio.wait([running])


async def test_devices_that_can_not_be_asked_do_not_hide_the_memory(metered: Metered) -> None:
    metered.devices.broken = "the driver does not answer"
    news = await metered.load(100 * MIB)
    assert news is not None
    assert (news.memory, news.devices) == (100 * MIB, {})


async def test_an_engine_that_does_not_answer_does_not_hide_the_devices(metered: Metered) -> None:
    metered.container.immeasurable = True
    news = await metered.load(100 * MIB, GIB)
    assert news is not None
    assert (news.memory, news.devices) == (None, {GPU: GIB})


async def test_without_any_measurement_before_the_load_nothing_is_told(metered: Metered) -> None:
    metered.container.immeasurable = True
    metered.devices.broken = "the driver does not answer"
    assert await metered.load(100 * MIB, GIB) is None
    metered.container.immeasurable = False
    metered.devices.broken = None
    assert await metered.measured() is None


async def test_processes_that_are_not_found_in_the_container_prove_nothing(
    metered: Metered,
) -> None:
    metered.pids = set()
    news = await metered.load(100 * MIB, GIB)
    assert news is not None
    assert news.devices == {}


async def test_a_container_that_died_took_no_less_than_was_seen(metered: Metered) -> None:
    await metered.load(100 * MIB)
    metered.container.exit(1)
    assert await metered.measured() is None
    metered.meter.forget(metered.container.id)
    await metered.meter.begin(metered.command(), metered.facts)
    assert await metered.measured() is None


async def test_of_a_container_that_is_gone_nothing_is_remembered(metered: Metered) -> None:
    await metered.load(100 * MIB)
    container_id = metered.container.id
    assert metered.meter.known == {container_id}
    await metered.runtime.remove(container_id)
    await metered.meter.measure(container_id)
    assert metered.meter.known == frozenset()
