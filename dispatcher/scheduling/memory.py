"""What the leading dispatcher holds in memory of the record."""

from dataclasses import dataclass

from dispatcher.scheduling.fleet import Fleet
from dispatcher.scheduling.footprints import LearnedFootprints
from dispatcher.scheduling.lines import Lines


@dataclass(frozen=True, slots=True)
class Memory:
    """The jobs with their lines, the hosts, and what models take."""

    lines: Lines
    fleet: Fleet
    footprints: LearnedFootprints
