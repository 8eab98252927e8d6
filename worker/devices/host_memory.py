"""Measures the memory of the host, as its kernel tells."""

from pathlib import Path

MEMINFO = Path("/proc/meminfo")
KIB = 1024


def memory_in_use(meminfo: Path = MEMINFO) -> int | None:
    """Return the bytes of memory that programs could not get now; None where it can't be told.

    That is `MemTotal` without `MemAvailable`, see proc_meminfo(5): caches that the kernel would
    give up do not count.
    """
    try:
        lines = [one.split() for one in meminfo.read_text(encoding="ascii").splitlines()]
        kib = {name: int(amount) for name, amount, *_ in lines}
        return max(0, kib["MemTotal:"] - kib["MemAvailable:"]) * KIB
    except (OSError, ValueError, LookupError):
        return None
