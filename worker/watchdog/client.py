"""A worker's end of the pipe to its watchdog: starts it, tells it of renewals, takes leave."""

import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import structlog

from modelyard.contract.topology import LOST_AFTER_S
from worker.watchdog.process import FAREWELL

log = structlog.get_logger(__name__)

WATCHDOG_S = LOST_AFTER_S * 5 / 6
"""Seconds without a renewal after which the watchdog acts: after the worker itself would have."""
PATIENCE_S = 120.0
"""Seconds for which it tries to stop what it has to, if the engine does not answer."""
FAREWELL_S = 2.0
"""Seconds for a watchdog without anything to watch to be gone."""


class WatchdogClient:
    """One watchdog process, started with the first renewal and again whenever it is gone.

    No call here blocks: a watchdog that does not read its pipe is left to itself.
    """

    def __init__(
        self,
        docker_url: str,
        *,
        host_id: str,
        note: Path | None,
        lease_s: float = WATCHDOG_S,
        options: Sequence[str] = (),
    ) -> None:
        """`note` is a file that this host's watchdogs share; `options` are passed on."""
        self._command = (
            *(sys.executable, "-m", "worker.watchdog.process"),
            *("--docker", docker_url),
            *("--host-id", host_id),
            *("--lease-s", str(lease_s)),
            *("--patience-s", str(PATIENCE_S)),
            *("--note", "" if note is None else str(note)),
            *options,
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The watchdog's process id, if there is one."""
        return None if self._process is None else self._process.pid

    def renewed(self, at: float) -> None:
        """Tell that the lease counts from `at`, by `uptime_s`."""
        if self._process is None or self._process.poll() is not None:
            if self._process is not None:
                log.warning("watchdog.gone", code=self._process.returncode)
            self._start()
        self._write(f"{at}\n".encode())

    def farewell(self) -> None:
        """Tell it that nothing is begun any more: it need not stay if nothing strict runs."""
        self._write(FAREWELL + b"\n")

    def let_go(self) -> None:
        """Close the pipe and see a watchdog out that has nothing to watch; others stay behind."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(OSError):
            _pipe(process).close()
        try:
            process.wait(FAREWELL_S)
        except subprocess.TimeoutExpired:
            log.info("watchdog.stays", pid=process.pid)

    def _start(self) -> None:
        if self._process is not None:
            with suppress(OSError):
                _pipe(self._process).close()
        self._process = None
        try:
            # A session of its own: what a terminal sends to the worker is not meant for it.
            self._process = subprocess.Popen(  # noqa: S603 - our own module, and no shell
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            log.warning("watchdog.not_started", error=repr(error))
        else:
            os.set_blocking(_pipe(self._process).fileno(), False)

    def _write(self, line: bytes) -> None:
        if self._process is None:
            return
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(_pipe(self._process).fileno(), line)


def shared_note(folder: Path, host_id: str, docker_url: str) -> Path | None:
    """Return the file that the watchdogs of a host share; None if the folder is not ours alone.

    Hosts of the same id on other engines are other hosts.

    Without it a new worker's containers are not told from those of the one that was killed.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        log.warning("watchdog.no_folder", folder=str(folder), error=repr(error))
        return None
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not ours or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        log.warning("watchdog.no_folder", folder=str(folder), error="others may write to it")
        return None
    engine = hashlib.sha256(docker_url.encode()).hexdigest()[:8]
    return folder / f"{host_id}-{engine}.lease"


def _pipe(process: subprocess.Popen[bytes]) -> IO[bytes]:
    if process.stdin is None:
        raise ValueError("a watchdog is started with a pipe")
    return process.stdin
