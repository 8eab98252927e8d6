"""What a worker tells of its host: at its boot all that it offers, then what was measured."""

from collections.abc import Sequence

from modelyard.contract.capacity.offers import DeviceReading
from modelyard.contract.messages import EngineFacts, Heartbeat, HostOnline, InventoryItem
from worker.devices.host_memory import memory_in_use
from worker.devices.watch import DeviceWatch
from worker.settings import WorkerSettings


class HostOffer:
    """The host's slots, labels, processors, memory and devices."""

    def __init__(self, settings: WorkerSettings, devices: DeviceWatch) -> None:
        self._settings = settings
        self._devices = devices

    @property
    def readings(self) -> tuple[DeviceReading, ...]:
        """The last measurement of each device, with its taint; for looking at them."""
        return self._devices.latest()

    async def online(
        self, engine: EngineFacts, inventory: Sequence[InventoryItem], *, begun_known: bool
    ) -> HostOnline:
        """Return the announcement of a boot; devices that can't be found now are not offered."""
        return HostOnline(
            slots=self._settings.worker_slots,
            labels=self._settings.worker_labels,
            capacity=self._settings.capacity(engine, await self._devices.found()),
            engine=engine,
            inventory=tuple(inventory),
            begun_known=begun_known,
        )

    def heartbeat(self, incarnation: str, *, running: int) -> Heartbeat:
        """Return a heartbeat with the last measurements."""
        return Heartbeat(
            host_id=self._settings.host_id,
            incarnation=incarnation,
            slots=self._settings.worker_slots,
            labels=self._settings.worker_labels,
            running=running,
            devices=self._devices.latest(),
            memory_used=memory_in_use(),
        )

    def record_told(self, heartbeat: Heartbeat) -> None:
        """Record that a heartbeat was confirmed."""
        self._devices.record_told(heartbeat.devices)
