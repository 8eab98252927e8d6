"""The journal of attempts that have begun and of which the broker has confirmed no report yet.

Work begins before its acceptance is confirmed. So a worker that dies may have begun an attempt that
no dispatcher knows of, and an inference must not run twice. Before an attempt begins it is written
to a small file; the page cache keeps what a killed process has written. The next worker of the host
reads the file and reports these attempts as begun before it announces itself. Once a report of an
attempt is confirmed, its entry is erased.

The file says nothing if it is missing, damaged, held by another process that still lives, or from
before the machine's last boot: what was written last may be lost then. What earlier workers have
begun is unknown in these cases, and the announcement says so.
"""

import fcntl
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from modelyard.contract.messages import HostCommand, OperationReport
from modelyard.contract.states import OperationState

log = structlog.get_logger(__name__)

SLOT_BYTES = 256
"""One entry, or the header. An entry has ids of 36 and up to 128 bytes, and two numbers."""
_VERSION = "modelyard attempts 1"
_MACHINE_BOOT = Path("/proc/sys/kernel/random/boot_id")
_EMPTY = bytes(SLOT_BYTES)

AttemptKey = tuple[str, int]
"""Operation id and epoch."""


def key_of(one: HostCommand | OperationReport) -> AttemptKey:
    """Return what names the attempt of a command or a report."""
    return (one.operation_id, one.epoch)


class AttemptJournal:
    """The journal of one host; it outlives the incarnations of a worker. Its calls do not wait."""

    def __init__(self, path: Path | None) -> None:
        """Keep the journal in the file `path`, in a folder that only this user may write to.

        None: there is no journal, so no attempt can be written down before it begins.
        """
        self._path = path
        self._file: int | None = None
        self._warned = False
        self._announced = False
        self._complete = False
        self._slots: dict[AttemptKey, int] = {}
        self._free: list[int] = []
        self._end = 1
        """Number of slots in the file, the header among them."""
        self._left: dict[AttemptKey, OperationReport] = {}

    def take_over(self) -> bool:
        """Take over the journal of the worker before; call it before each announcement.

        Returns whether `begun` has everything that earlier incarnations may have begun.
        """
        self._announced = False
        if self._file is None:
            self._open()
        else:
            self._read(self._file)
        return self._file is not None and self._complete

    @property
    def begun(self) -> list[OperationReport]:
        """The first reports of attempts that earlier incarnations have begun and not reported."""
        return list(self._left.values())

    def announced(self) -> None:
        """Record that the announcement is confirmed: from now on the journal is complete."""
        self._announced = True
        if self._file is not None and not self._complete:
            self._complete = self._write(0, _header(complete=True))

    def record(self, commands: Sequence[HostCommand]) -> bool:
        """Write down attempts that are about to begin.

        Returns False if that failed: then they must not begin before a report of them is confirmed.
        """
        if self._file is None and commands:
            self._open()  # the process that held it may be gone
            if self._announced:
                self.announced()
        recorded = [self._record(command) for command in commands]
        return all(recorded)

    def reported(self, reports: Iterable[OperationReport]) -> None:
        """Erase the attempts of reports that the broker has confirmed."""
        for report in reports:
            key = key_of(report)
            self._left.pop(key, None)
            slot = self._slots.pop(key, None)
            if slot is not None:
                # An entry that can't be erased is reported again after the next boot: harmless.
                self._write(slot, _EMPTY)
                self._free.append(slot)

    def close(self) -> None:
        """Close the file, so that the next worker can take it over."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _record(self, command: HostCommand) -> bool:
        if key_of(command) in self._slots:
            return True
        slot = self._free.pop() if self._free else self._end
        if not self._write(slot, _entry(command)):
            if slot != self._end:
                self._free.append(slot)
            return False
        self._end = max(self._end, slot + 1)
        self._slots[key_of(command)] = slot
        return True

    def _write(self, slot: int, data: bytes) -> bool:
        if self._file is None:
            return False
        try:
            return os.pwrite(self._file, data, slot * SLOT_BYTES) == len(data)
        except OSError as error:
            log.warning("journal.not_written", error=repr(error))
            return False

    def _open(self) -> None:
        if self._path is None:
            return
        opened: int | None = None
        try:
            opened = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read(opened)
        except OSError as error:
            if not self._warned:
                log.warning("journal.unusable", path=str(self._path), error=repr(error))
            self._warned = True
            if opened is not None:
                os.close(opened)
        else:
            self._file = opened

    def _read(self, opened: int) -> None:
        """Read the whole file; begin a new one, which is incomplete, if it says nothing."""
        whole = os.pread(opened, os.fstat(opened).st_size, 0)
        try:
            self._complete, entries = _parsed(whole)
        except ValueError:
            os.ftruncate(opened, 0)
            os.pwrite(opened, _header(complete=False), 0)
            self._complete, entries, whole = False, {}, b""
        self._end = max(1, -(-len(whole) // SLOT_BYTES))
        self._left = {key_of(report): report for report in entries.values()}
        self._slots = {key_of(report): slot for slot, report in entries.items()}
        self._free = [slot for slot in range(1, self._end) if slot not in entries]


def _header(*, complete: bool) -> bytes:
    """Return the header; an incomplete journal does not know what earlier workers have begun."""
    boot = ""
    with suppress(OSError):
        boot = _MACHINE_BOOT.read_text().strip()
    text = f"{_VERSION} {'complete' if complete else 'incomplete'} {boot}\n"
    return text.encode().ljust(SLOT_BYTES, b"\0")


def _entry(command: HostCommand) -> bytes:
    text = f"{command.operation_id} {command.epoch} {command.generation} {command.job_id}\n"
    return text.encode().ljust(SLOT_BYTES, b"\0")


def _parsed(whole: bytes) -> tuple[bool, dict[int, OperationReport]]:
    """Return whether the journal is complete, and its entries by slot.

    Raises `ValueError` if it is not a journal, is damaged, or is from an earlier machine boot.
    """
    complete = whole[:SLOT_BYTES] == _header(complete=True)
    if not complete and whole[:SLOT_BYTES] != _header(complete=False):
        raise ValueError("not a journal of this machine's boot")
    entries: dict[int, OperationReport] = {}
    for slot in range(1, -(-len(whole) // SLOT_BYTES)):
        text = whole[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES].rstrip(b"\0").decode()
        if text:
            operation_id, epoch, generation, job_id = text.split()
            entries[slot] = OperationReport(
                operation_id=operation_id,
                epoch=int(epoch),
                seq=1,
                job_id=job_id,
                generation=int(generation),
                state=OperationState.RUNNING,
            )
    return complete, entries
