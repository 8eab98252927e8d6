"""Processes in `/proc`: their identity, their state, their sockets and their descendants.

Works on Linux only.
"""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from deploy.local.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable

_PROC = Path("/proc")
_BOOT_ID = _PROC / "sys/kernel/random/boot_id"
_KILL_S = 10.0
_LISTEN = "0A"
_NOT_RUNNING = frozenset("TtDZX")
"""Stopped, traced, in the kernel for a disk, ended; see proc(5)."""


@dataclass(frozen=True)
class ProcessId:
    """Identifies a process, also after its number was given to a later one.

    `started` is in clock ticks since boot (field 22 of `/proc/PID/stat`, see proc(5)). `boot`
    identifies the boot, so that a record from before a reboot matches no process.
    """

    pid: int
    started: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Look the process up; None if it is gone or only waits to be reaped."""
        stat = _stat(pid)
        if stat is None or stat.state == "X" or (stat.state == "Z" and not _has_threads(pid)):
            return None
        return cls(pid, stat.started, _BOOT_ID.read_text().strip())

    @property
    def alive(self) -> bool:
        return ProcessId.of(self.pid) == self

    @property
    def stopped(self) -> bool:
        """True once all of its threads have stopped; SIGSTOP reaches them one after the other."""
        states = {stat.state for task in _tasks(self.pid) if (stat := _read_stat(task / "stat"))}
        return states <= _NOT_RUNNING

    def listens_on(self, port: int) -> bool:
        """Tell whether this process itself has a listening TCP socket on this port.

        Source: proc(5), `/proc/net/tcp` (state 0A is LISTEN, field 10 the socket's inode) and
        `/proc/PID/fd`.
        """
        wanted = {f"socket:[{inode}]" for inode in _listening(port)}
        try:
            descriptors = list((_PROC / str(self.pid) / "fd").iterdir())
        except OSError:
            return False
        return self.alive and any(_target(one) in wanted for one in descriptors)

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if self.alive:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return


def _listening(port: int) -> set[str]:
    found = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = (_PROC / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            local, state, inode = fields[1], fields[3], fields[9]
            if state == _LISTEN and int(local.rpartition(":")[2], 16) == port:
                found.add(inode)
    return found


def _target(link: Path) -> str | None:
    try:
        return str(link.readlink())
    except OSError:
        return None


def carrying(variable: str, value: str) -> set[ProcessId]:
    """Find the processes that were started with this variable in their environment.

    Daemons that left their parent and their session (epmd, container shims) still have it.
    Processes of other users are skipped, unless we are root.
    """
    wanted = f"{variable}={value}".encode()
    found = set()
    for pid in _pids():
        try:
            environment = (_PROC / str(pid) / "environ").read_bytes()
        except OSError:
            continue
        if wanted in environment.split(b"\0") and (process := ProcessId.of(pid)):
            found.add(process)
    return found


def with_descendants(roots: Iterable[ProcessId]) -> set[ProcessId]:
    """Add the children of the given processes, their children, and so on."""
    children: dict[int, list[int]] = defaultdict(list)
    for pid in _pids():
        if stat := _stat(pid):
            children[stat.parent].append(pid)
    family = set(roots)
    waiting = [process.pid for process in family]
    while waiting:
        for pid in children[waiting.pop()]:
            process = ProcessId.of(pid)
            if process and process not in family:
                family.add(process)
                waiting.append(pid)
    return family


def kill_all(processes: Iterable[ProcessId]) -> None:
    """Kill these processes and wait until they have ended."""
    doomed = list(processes)
    for process in doomed:
        process.send(signal.SIGKILL)
    wait_until(lambda: not any(p.alive for p in doomed), _KILL_S, "killed processes gone")


@dataclass(frozen=True)
class _Stat:
    state: str
    parent: int
    started: int


def _stat(pid: int) -> _Stat | None:
    return _read_stat(_PROC / str(pid) / "stat")


def _read_stat(file: Path) -> _Stat | None:
    try:
        text = file.read_text()
    except OSError:
        return None
    # The second field is the program's name in parentheses and may itself contain both.
    fields = text.rpartition(")")[2].split()
    return _Stat(state=fields[0], parent=int(fields[1]), started=int(fields[19]))


def _has_threads(pid: int) -> bool:
    """Tell whether a zombie has other threads, which hold its sockets until they have ended."""
    return len(_tasks(pid)) > 1


def _tasks(pid: int) -> list[Path]:
    try:
        return list((_PROC / str(pid) / "task").iterdir())
    except OSError:
        return []


def _pids() -> list[int]:
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]
