"""Measures what models take while they are in memory, beyond what their containers use anyway.

What counts is the most that was ever taken. So a model is measured before its load, after it, and
while it is used: every few seconds, and as its unload begins. Inferences wait for none of this.
Host memory that the kernel can drop, such as files that were read once, does not count.

A process that restarts has forgotten what containers used before their loads: models that were
loaded earlier are measured again from their next load on. Of their unloads it can tell only whether
anything was given back.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

import structlog

from modelyard.contract.capacity.footprints import Footprint
from modelyard.contract.capacity.sizes import size_text
from modelyard.contract.messages import HostCommand
from worker.devices.holders import DeviceHolders
from worker.devices.protocol import DevicesUnreadableError
from worker.engine.protocol import (
    ContainerFacts,
    ContainerRuntime,
    MemoryReading,
    NoSuchContainerError,
    RuntimeFaultError,
)

log = structlog.get_logger(__name__)

INTERVAL_S = 5.0
"""Seconds between two measurements of models that are in use."""
SLACK = 16 << 20
"""Bytes of host memory that a server may keep besides: allocators keep some."""
LIBRARIES = 512 << 20
"""Bytes of host memory that a server may keep beyond what it used before its first load, but no
more than a quarter of what is held for its model: the libraries that this load has imported."""
GIVEN_BACK = 64 << 20
"""Bytes of a device that count as given back: a driver's own use varies by less."""
NEWS = 1.01
"""A peak is reported again once it is that many times what was reported."""


@dataclass(frozen=True, slots=True)
class _Before:
    """What a container used before the load."""

    memory: int | None
    highest: int
    """The kernel's own peak then: a higher one belongs to the load."""
    devices: dict[str, int]


@dataclass(slots=True)
class _Taken:
    """What one load of a model took so far at the most."""

    load: str
    bound: tuple[str, ...]
    """The devices that the container sees."""
    before: _Before
    memory: int | None = None
    devices: dict[str, int] = field(default_factory=dict)
    reported: Footprint | None = None
    in_use: bool = False
    """True if it was used since the last measurement."""
    runs: bool = False
    """True if it is in use all the time."""


class MemoryMeter:
    """The models whose loads this process has seen, by container id."""

    def __init__(self, runtime: ContainerRuntime, holders: DeviceHolders) -> None:
        self._runtime = runtime
        self._holders = holders
        self._idle: dict[str, _Before] = {}
        """The least that each container was seen to use without its model."""
        self._leaving: dict[str, _Before] = {}
        """What containers used as their unload began, of which nothing is known without models."""
        self._taken: dict[str, _Taken] = {}

    async def run(self) -> None:
        """Measure the models that are in use, until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            for container_id, taken in tuple(self._taken.items()):
                if taken.in_use or taken.runs:
                    await self.measure(container_id)

    async def begin(
        self, command: HostCommand, facts: ContainerFacts, *, runs: bool = False
    ) -> None:
        """Look at a container whose model is about to be loaded by this command.

        `runs`: it works as long as it runs, without any further operation.
        """
        self._taken.pop(facts.id, None)
        before = await self._before(command, facts)
        if before is not None:
            self._idle[facts.id] = before
            self._taken[facts.id] = _Taken(command.operation_id, command.devices, before, runs=runs)

    def use(self, container_id: str) -> None:
        """Have a model measured soon: an operation uses it."""
        taken = self._taken.get(container_id)
        if taken is not None:
            taken.in_use = True

    async def measure(self, container_id: str) -> None:
        """Measure a model now, if its load was seen; a failure is logged and changes nothing."""
        taken = self._taken.get(container_id)
        if taken is None:
            return
        taken.in_use = False
        reading = await self._memory(container_id)
        if reading is not None and reading.in_use and taken.before.memory is not None:
            rose = reading.highest is not None and reading.highest > taken.before.highest
            most = reading.highest - reading.droppable if rose and reading.highest else 0
            found = max(reading.used, most) - taken.before.memory
            taken.memory = max(taken.memory or 0, found)
        for uuid, held in (await self._devices(container_id, taken.bound)).items():
            found = held - taken.before.devices.get(uuid, 0)
            # What holds nothing was not found to belong to the container, rather than so small.
            if found > 0 and uuid in taken.before.devices:
                taken.devices[uuid] = max(taken.devices.get(uuid, 0), found)

    def news(self, container_id: str) -> Footprint | None:
        """Return what a model was measured to take, if that is more than was returned before."""
        taken = self._taken.get(container_id)
        if taken is None or (taken.memory is None and not taken.devices):
            return None
        found = Footprint(load=taken.load, memory=taken.memory, devices=dict(taken.devices))
        if taken.reported is not None and not _is_more(found, taken.reported):
            return None
        taken.reported = found
        return found

    async def leave(self, command: HostCommand, container_id: str) -> None:
        """Look at a container whose model is about to be unloaded by this command."""
        if container_id in self._idle or container_id in self._leaving:
            return
        reading = await self._memory(container_id)
        devices = await self._devices(container_id, command.devices)
        memory = None if reading is None else reading.used
        self._leaving[container_id] = _Before(memory, 0, devices)

    async def kept(self, command: HostCommand, container_id: str, *, tolerance: int) -> list[str]:
        """Return what a container still holds that its unloaded model should have given back.

        Of a device that is more than before the load and `tolerance` bytes. Of host memory it is
        more than what remains held for the container, and more than before the load with
        `LIBRARIES`; nothing if all of it remains held. If nobody knows what the container used
        before the load, it is also no more than what it used before the unload.
        """
        kept: list[str] = []
        idle, leaving = self._idle.get(container_id), self._leaving.get(container_id)
        for uuid, held in (await self._devices(container_id, command.devices)).items():
            before = idle.devices.get(uuid, 0) if idle else 0
            begun = leaving.devices.get(uuid, 0) if leaving else 0
            if held - before > max(tolerance, begun - GIVEN_BACK):
                kept.append(f"{size_text(held - before)} on the device {uuid}")
        allowed = self._memory_allowed(command, container_id)
        if allowed is None:
            return kept
        reading = await self._memory(container_id)
        if reading is not None and reading.used > allowed:
            kept.append(f"{size_text(reading.used - allowed + SLACK)} of the host's memory")
        return kept

    def _memory_allowed(self, command: HostCommand, container_id: str) -> int | None:
        """Return the bytes of host memory that a container without its model may use.

        None if nothing is held for the model alone, or nobody knows how much.
        """
        resources, taken = command.model.resources, self._taken.get(container_id)
        declared = resources.resident_memory
        given = [one for one in (declared, taken and taken.memory) if isinstance(one, int)]
        if not declared or not given:
            return None
        of_model = min(resources.memory, max(given))
        remains = resources.memory - of_model + SLACK
        idle, leaving = self._idle.get(container_id), self._leaving.get(container_id)
        if idle is not None and idle.memory is not None:
            return max(remains, idle.memory + max(SLACK, min(LIBRARIES, of_model // 4)))
        if leaving is not None and leaving.memory is not None:
            return max(remains, leaving.memory - SLACK)
        return remains

    def forget(self, container_id: str) -> None:
        """Forget a model that is not in memory any more."""
        self._taken.pop(container_id, None)
        self._leaving.pop(container_id, None)

    def record_removed(self, container_id: str) -> None:
        """Forget a container that was removed."""
        self.forget(container_id)
        self._idle.pop(container_id, None)

    @property
    def known(self) -> frozenset[str]:
        """Ids of the containers of which anything is remembered."""
        return frozenset({*self._idle, *self._taken, *self._leaving})

    async def _before(self, command: HostCommand, facts: ContainerFacts) -> _Before | None:
        """Return the least that the container was seen to use without its model.

        A server may keep some of it after its first load; the model of a new container takes that.
        """
        if not facts.running:
            return _Before(0, 0, dict.fromkeys(command.devices, 0))
        reading = await self._memory(facts.id)
        devices = await self._devices(facts.id, command.devices)
        if reading is None and not devices:
            return None
        earlier = self._idle.get(facts.id)
        memory = None if reading is None else reading.used
        if earlier is not None:
            if memory is not None and earlier.memory is not None:
                memory = min(memory, earlier.memory)
            devices = {
                uuid: min(held, earlier.devices.get(uuid, held)) for uuid, held in devices.items()
            }
        return _Before(memory, (reading.highest if reading else None) or 0, devices)

    async def _memory(self, container_id: str) -> MemoryReading | None:
        try:
            return await self._runtime.memory(container_id)
        except NoSuchContainerError:
            self.record_removed(container_id)
        except RuntimeFaultError as error:
            log.info("memory.unmeasured", container_id=container_id, reason=error.message)
        return None

    async def _devices(self, container_id: str, bound: Iterable[str]) -> dict[str, int]:
        wanted = set(bound)
        if not wanted:
            return {}
        try:
            held = await self._holders.held_by(container_id)
        except DevicesUnreadableError as error:
            log.info("memory.devices_unmeasured", container_id=container_id, reason=str(error))
            return {}
        return {uuid: amount for uuid, amount in held.items() if uuid in wanted}


def _is_more(found: Footprint, reported: Footprint) -> bool:
    pairs = [(found.memory or 0, reported.memory or 0)]
    pairs += [(amount, reported.devices.get(uuid, 0)) for uuid, amount in found.devices.items()]
    return any(now > NEWS * before for now, before in pairs)
