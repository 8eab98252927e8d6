"""CPU and memory of processes, from `/proc` (proc(5), Linux only)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from deploy.local.processes import ProcessId

_PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Usage:
    """What one process has used: CPU seconds of all its threads since its start, and its memory.

    CPU is counted in clock ticks, usually of 10 ms. `rss_bytes` includes pages that it shares with
    other processes.
    """

    cpu_s: float
    rss_bytes: int


Usages = dict[str, dict["ProcessId", Usage]]
"""Usage of each process, by the name of its service."""


def parse_stat(text: str) -> Usage:
    """Read a line of `/proc/PID/stat`: fields 14 and 15 (utime, stime) and 24 (rss)."""
    # The second field is the program's name in parentheses and may itself contain both.
    fields = text.rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return Usage(ticks / _TICKS_PER_S, int(fields[21]) * _PAGE_BYTES)


def usage_of(process: ProcessId) -> Usage | None:
    """Return what a process has used so far; null if it has ended."""
    try:
        text = (_PROC / str(process.pid) / "stat").read_text()
    except OSError:
        return None
    return parse_stat(text)


def read(services: Mapping[str, Iterable[ProcessId]]) -> Usages:
    """Read the usage of all processes; those that have ended are left out."""
    return {
        name: {one: usage for one in processes if (usage := usage_of(one))}
        for name, processes in services.items()
    }


def cpu_between(before: Usages, after: Usages) -> dict[str, float]:
    """Return the CPU seconds that each service used between two readings.

    A process that started in between counts from its start. What a process used that ended in
    between is not counted.
    """
    return {
        name: sum(
            usage.cpu_s - (earlier.cpu_s if (earlier := before.get(name, {}).get(one)) else 0.0)
            for one, usage in processes.items()
        )
        for name, processes in after.items()
    }


def memory(usages: Usages) -> dict[str, int]:
    """Return the resident bytes of each service, summed over its processes."""
    return {name: sum(one.rss_bytes for one in of.values()) for name, of in usages.items()}
