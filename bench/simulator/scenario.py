"""What is simulated: hosts, models, jobs, and what is asked of them when."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelyard.contract.catalog.entries import ModelSpec

if TYPE_CHECKING:
    from modelyard.contract.states import Verb

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class SimulatedModel:
    """A model, and how long what is done with it takes."""

    spec: ModelSpec
    load_s: float
    unload_s: float

    @classmethod
    def of(
        cls, name: str, resources: dict[str, object], *, load_s: float, **more: object
    ) -> SimulatedModel:
        """Return a model that is loaded on demand; `more` goes to its catalog entry."""
        entry = {
            "name": name,
            "image": f"example/{name}",
            "profile": "open-inference",
            "port": 8080,
            "residency": {"on_demand": True},
            "resources": {"cpus": 1.0, "memory": "1g"} | resources,
        }
        return cls(ModelSpec.model_validate(entry | more), load_s, load_s / 10)


@dataclass(frozen=True, slots=True)
class SimulatedHost:
    """A host, with its processors, bytes of memory, and bytes of each device."""

    host_id: str
    cpus: float
    memory: int
    devices: tuple[int, ...] = ()
    has_images: bool = True
    """False if its engine has no image of any model."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """An operation that a client asks for."""

    at: float
    job_id: str
    verb: Verb
    takes_s: float = 0.0
    """Seconds that it works, without its loads."""
    priority: int = 0
    model: str | None = None
    """Named by what creates a container."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One trace over one fleet."""

    name: str
    hosts: tuple[SimulatedHost, ...]
    models: tuple[SimulatedModel, ...]
    arrivals: tuple[Arrival, ...]
    """In order of time."""
    contended: bool = False
    """True if models contend for devices all the time: here swaps are compared."""
    swap_wait_s: float = 30.0
    classes: dict[int, str] = field(default_factory=dict)
    """What operations of a priority are called in the table."""
