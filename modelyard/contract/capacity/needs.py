"""What a model needs of its host: from CREATE to TERMINATE, and while it is in memory. Pure."""

from dataclasses import dataclass

from modelyard.contract.capacity.offers import millicpus
from modelyard.contract.catalog.entries import ModelSpec


@dataclass(frozen=True, slots=True)
class ContainerNeed:
    """What a container holds as long as it exists, running or not."""

    millicpus: int = 0
    memory: int = 0
    """Bytes of host memory."""
    devices: int = 0
    """Devices that are bound to it; binding alone takes none of their memory."""
    slots: int = 1


@dataclass(frozen=True, slots=True)
class ResidentNeed:
    """What a model holds besides while it is in memory."""

    memory: int = 0
    """Bytes of host memory."""
    devices: int = 0
    device_memory: int | None = None
    """Bytes on each of its devices; None: whole devices, which it shares with nobody."""

    @property
    def nothing(self) -> bool:
        """True if the model in memory holds no more than its container."""
        return not self.memory and not self.devices


def container_need(spec: ModelSpec) -> ContainerNeed:
    """Return what a container of this model holds."""
    resources = spec.resources
    return ContainerNeed(
        millicpus=millicpus(resources.cpus),
        memory=max(0, resources.memory - (resources.resident_memory or 0)),
        devices=resources.gpus,
    )


def resident_need(spec: ModelSpec) -> ResidentNeed:
    """Return what this model holds besides while it is in memory."""
    resources = spec.resources
    return ResidentNeed(
        memory=resources.resident_memory or 0,
        devices=resources.gpus,
        device_memory=resources.gpu_memory or None,
    )
