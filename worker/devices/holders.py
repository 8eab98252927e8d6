"""Which container holds how much of which device."""

from collections.abc import Callable, Collection, Mapping

from modelyard.process.tasks import in_daemon_thread
from worker.devices.cgroups import containers_of
from worker.devices.protocol import DeviceInventory


class DeviceHolders:
    """Matches the programs on each device to their containers."""

    def __init__(
        self,
        inventory: DeviceInventory,
        *,
        containers: Callable[[int], Collection[str]] = containers_of,
    ) -> None:
        """`containers` returns the ids of the containers that a process is in."""
        self._inventory = inventory
        self._containers = containers

    async def held_by(self, container_id: str) -> dict[str, int]:
        """Return the bytes that a container holds of each device, 0 where it holds none.

        A device that can't tell is missing. Raises `DevicesUnreadableError`.
        """
        programs = await self._inventory.programs()
        return await in_daemon_thread(
            lambda: self._sums(programs, container_id), name="device-programs"
        )

    def _sums(self, programs: Mapping[str, Mapping[int, int]], container_id: str) -> dict[str, int]:
        held: dict[str, int] = {}
        for uuid, taken in programs.items():
            inside = (pid for pid in taken if container_id in self._containers(pid))
            held[uuid] = sum(taken[pid] for pid in inside)
        return held
