"""Whether a model that was unloaded has given its memory back."""

from dataclasses import dataclass

from modelyard.contract.messages import HostCommand
from worker.containers.memory_meter import MemoryMeter
from worker.containers.polling import GrowingPauses
from worker.devices.taints import DeviceTaints


@dataclass(frozen=True, slots=True)
class UnloadRules:
    """When a model counts as out of memory."""

    within_s: float = 10.0
    """Seconds after an unload, or the end of a container, in which memory must become free."""
    tolerance: int = 768 << 20
    """Bytes of a device that a server may keep beyond what it held before the load: the context of
    CUDA, which a process keeps until its end, is about 600 MiB."""


class GivenBack:
    """Measures after an unload until the memory is free, or the time is over."""

    def __init__(self, meter: MemoryMeter, rules: UnloadRules) -> None:
        self._meter = meter
        self.rules = rules

    async def kept_after_unload(self, command: HostCommand, container_id: str) -> list[str]:
        """Return what is still held when the time is over; nothing once all is given back."""
        pauses = GrowingPauses(self.rules.within_s)
        while True:
            kept = await self._meter.kept(command, container_id, tolerance=self.rules.tolerance)
            if not kept or not await pauses.pause():
                return kept


@dataclass(frozen=True, slots=True)
class MemoryWatch:
    """All that watches memory: what models take, and whether it is given back."""

    meter: MemoryMeter
    given_back: GivenBack
    taints: DeviceTaints
