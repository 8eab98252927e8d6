"""Which container a process belongs to, by its control groups.

Docker names a container's control group by its id, under both versions and both drivers: a line of
`/proc/PID/cgroup` reads `4:memory:/docker/ID`, `0::/docker/ID` or
`0::/system.slice/docker-ID.scope`. Source: cgroups(7), and Moby's cgroup drivers.
"""

import re
from pathlib import Path

PROC = Path("/proc")
_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_MOST_BYTES = 64 << 10


def containers_of(pid: int, *, proc: Path = PROC) -> frozenset[str]:
    """Return the ids of the containers that a process is in; none if it has ended.

    A process in a container within a container is in both.
    """
    try:
        with (proc / str(pid) / "cgroup").open("rb") as file:
            text = file.read(_MOST_BYTES).decode(errors="replace")
    except OSError:
        return frozenset()
    return frozenset(_ID.findall(text))
