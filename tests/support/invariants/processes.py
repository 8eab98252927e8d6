"""I11: what a process holds of the machine, from `/proc`, before and after a fault."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from deploy.local.processes import ProcessId

_PROC = Path("/proc")
_KIB = 1 << 10
MORE_DESCRIPTORS = 64
MORE_THREADS = 24
MORE_MIB = 96
"""What drivers keep for the next burst is no leak: MongoDB's keeps its connections and threads."""


@dataclass(frozen=True, slots=True)
class Holding:
    """One process at one moment."""

    process: ProcessId
    descriptors: int
    threads: int
    resident_mib: int

    @classmethod
    def of(cls, process: ProcessId) -> Self | None:
        """Look at a process; None if it is gone."""
        folder = _PROC / str(process.pid)
        try:
            descriptors = len(list((folder / "fd").iterdir()))
            lines = (folder / "status").read_text().splitlines()
        except OSError:
            return None
        words = dict(line.split(":", 1) for line in lines if ":" in line)
        resident = int(words.get("VmRSS", "0 kB").split()[0]) // _KIB
        return cls(process, descriptors, int(words["Threads"]), resident)


def grown(before: Mapping[str, Holding], after: Mapping[str, Holding]) -> list[str]:
    """Return a sentence for each process that kept more than it had; restarted ones start anew."""
    wrong = []
    for name, now in after.items():
        then = before.get(name)
        if then is None or then.process != now.process:
            continue
        for what, had, has, more in (
            ("file descriptors", then.descriptors, now.descriptors, MORE_DESCRIPTORS),
            ("threads", then.threads, now.threads, MORE_THREADS),
            ("MiB of memory", then.resident_mib, now.resident_mib, MORE_MIB),
        ):
            if has > had + more:
                wrong.append(f"{name} had {had} {what} before and has {has} now")
    return wrong
