"""What simulations have shown: each by itself, and many together."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.simulator.scenario import Arrival


@dataclass(slots=True)
class Outcome:
    """What one simulation has shown."""

    events: int = 0
    swaps: int = 0
    """Models that were unloaded for others."""
    had_to_stay: int = 0
    """How often a model that never makes room was where others needed its place."""
    idle_late_s: list[float] = field(default_factory=list)
    """Of each unload of an idle model: the seconds from its time to its start."""
    relocations: int = 0
    """Jobs that were created anew where their models had room."""
    waits: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds from acceptance to start of what clients asked for, by priority."""
    room_waits: list[tuple[float, float]] = field(default_factory=list)
    """Of each load: the seconds that it waited for room, and its bound."""
    ends_at: float = 0.0
    busy_device_s: float = 0.0
    """Seconds of devices on which an inference ran, summed up."""
    started: list[tuple[Arrival, tuple[str, ...], str]] = field(default_factory=list)
    """Inferences, with the devices of their jobs and their models."""

    @property
    def breaches(self) -> int:
        """Loads that waited for longer than the bound."""
        return sum(waited > bound for waited, bound in self.room_waits)


@dataclass(slots=True)
class Totals:
    """What many simulations have shown together."""

    events: int = 0
    swaps: int = 0
    had_to_stay: int = 0
    idle_unloads: int = 0
    latest_s: float = 0.0
    """The longest time from when an idle model was to be unloaded to when it was."""
    breaches: int = 0

    def add(self, outcome: Outcome) -> None:
        """Count one more."""
        self.events += outcome.events
        self.swaps += outcome.swaps
        self.had_to_stay += outcome.had_to_stay
        self.idle_unloads += len(outcome.idle_late_s)
        self.latest_s = max([self.latest_s, *outcome.idle_late_s])
        self.breaches += outcome.breaches
