"""What a model needs of its host: from CREATE to TERMINATE, and while it is in memory. Pure.

A need is the larger one of what the model's entry declares and what was learned. Every decision
(placement, load, eviction) and every explanation takes it from here.
"""

from dataclasses import dataclass, replace

from modelyard.contract.capacity.footprints import NOTHING_LEARNED, Learned
from modelyard.contract.capacity.offers import millicpus
from modelyard.contract.capacity.sizes import size_text
from modelyard.contract.catalog.entries import ModelSpec
from modelyard.contract.catalog.values import AUTO


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
    """Bytes on each of its devices, as declared: 0 if only what is learned counts. None: whole
    devices, which it shares with nobody."""
    learned: tuple[tuple[str, int], ...] = ()
    """Bytes on one device that were measured, by the model of the device."""

    @property
    def nothing(self) -> bool:
        """True if the model in memory holds no more than its container."""
        return not self.memory and not self.devices

    def on(self, device_model: str) -> int | None:
        """Return the bytes that the model needs on a device of this model; None: all of them."""
        if self.device_memory is None:
            return None
        return max(self.device_memory, dict(self.learned).get(device_model, 0)) or None

    def text_on(self, device_model: str) -> str:
        """Return what it needs on a device of this model, for people."""
        amount = self.on(device_model)
        if amount is None:
            return "all of it"
        if not self.device_memory:
            return f"{size_text(amount)} (measured)"
        if amount > self.device_memory:
            return f"{size_text(amount)} (measured; {size_text(self.device_memory)} declared)"
        return size_text(amount)


def container_need(spec: ModelSpec, learned: Learned = NOTHING_LEARNED) -> ContainerNeed:
    """Return what a container of this model holds."""
    resources = spec.resources
    return ContainerNeed(
        millicpus=millicpus(resources.cpus),
        memory=resources.memory - _resident_memory(spec, learned),
        devices=resources.gpus,
    )


def resident_need(spec: ModelSpec, learned: Learned = NOTHING_LEARNED) -> ResidentNeed:
    """Return what this model holds besides while it is in memory.

    Together with what its container holds this is all of the container's memory, which is also its
    limit.
    """
    resources = spec.resources
    # Without a size, and by older versions with the size 0, devices are not shared.
    declared = 0 if resources.gpu_memory == AUTO else resources.gpu_memory or None
    return ResidentNeed(
        memory=_resident_memory(spec, learned),
        devices=resources.gpus,
        device_memory=declared,
        learned=learned.devices if declared is not None else (),
    )


def need_beside(spec: ModelSpec, learned: Learned, container_memory: int) -> ResidentNeed:
    """Return what a model holds whose container holds `container_memory` bytes already.

    When that container was created, less may have been learned, or more: both together are all of
    the memory that the container may use.
    """
    need = resident_need(spec, learned)
    if not holds_while_loaded(spec) or spec.resources.resident_memory is None:
        return need
    return replace(need, memory=max(0, spec.resources.memory - container_memory))


def holds_while_loaded(spec: ModelSpec) -> bool:
    """Tell whether a model in memory holds more than its container, whatever is learned of it."""
    return bool(spec.resources.gpus) or bool(spec.resources.resident_memory)


def _resident_memory(spec: ModelSpec, learned: Learned) -> int:
    declared, all_memory = spec.resources.resident_memory, spec.resources.memory
    if not declared:
        return 0
    if declared == AUTO:
        return all_memory if learned.memory is None else min(learned.memory, all_memory)
    return min(max(declared, learned.memory or 0), all_memory)
