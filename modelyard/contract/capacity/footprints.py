"""What models take while they are in memory, as it is measured, and what is learned of it. Pure."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from modelyard.contract.capacity.offers import MAX_DEVICES, Bytes, DeviceId
from modelyard.contract.ids import OperationId

KEPT_LOADS = 10
"""The last loads whose peaks count: so a need that has become smaller is learned, too."""


class Footprint(BaseModel):
    """What one load of a model took so far at the most, beyond what its container used before."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    load: OperationId
    """The operation that brought the model into memory."""
    memory: Bytes | None = None
    """Bytes of host memory; null if it could not be measured."""
    devices: Annotated[dict[DeviceId, Bytes], Field(max_length=MAX_DEVICES)] = Field(
        default_factory=dict
    )
    """Bytes on each device; one that is missing could not be measured."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What the last loads of a model and image took at the most."""

    memory: int | None = None
    """Bytes of host memory; None if nothing was measured yet."""
    devices: tuple[tuple[str, int], ...] = ()
    """Bytes on one device, by the model of the device, such as `NVIDIA H100 80GB HBM3`."""


NOTHING_LEARNED = Learned()
