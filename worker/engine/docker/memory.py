"""What a container uses of the host's memory: by the engine's statistics and its control group."""

import re
from pathlib import Path

from worker.engine.docker.documents import StatsDocument
from worker.engine.protocol import MemoryReading

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
_UNIFIED = re.compile(r"^0::(/.*)$", re.MULTILINE)


def reading_of(stats: StatsDocument, peak: int | None) -> MemoryReading:
    """Return the measurement; `peak` is used if the engine does not tell it."""
    memory = stats.memory_stats
    # Under version 1 the name without `total_` leaves out groups within the group.
    inactive = memory.stats.get("total_inactive_file", memory.stats.get("inactive_file", 0))
    return MemoryReading(
        in_use=memory.usage,
        droppable=min(inactive, memory.usage),
        highest=memory.max_usage if memory.max_usage is not None else peak,
    )


def peak_of(
    container_id: str, pid: int, *, proc: Path = PROC, cgroups: Path = CGROUPS
) -> int | None:
    """Return the most bytes that a container's control group (version 2) ever used.

    `pid` is its main process. None if that is not on this machine, or the kernel (before 5.19) does
    not tell. Source: Linux, `Documentation/admin-guide/cgroup-v2.rst`, `memory.peak`.
    """
    try:
        found = _UNIFIED.search((proc / str(pid) / "cgroup").read_text())
        if found is None or container_id not in found.group(1):
            return None
        return int((cgroups / found.group(1).lstrip("/") / "memory.peak").read_text())
    except (OSError, ValueError):
        return None
