"""The worker's side of its watchdog: starts the process and sends it the renewals of the lease."""

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

WATCHDOG_LEASE_S = LOST_AFTER_S * 5 / 6
"""Seconds without a renewal after which the watchdog acts: later than the worker itself."""
PATIENCE_S = 120.0
"""Seconds for which the watchdog tries to stop containers if the engine does not answer."""
FAREWELL_S = 2.0
"""Seconds that a watchdog without anything to watch gets to exit."""


class WatchdogClient:
    """One watchdog process: started with the first renewal, and again after it died.

    `renewed` and `announce_shutdown` never block: a line for which the pipe has no room is dropped.
    """

    def __init__(
        self,
        docker_url: str,
        *,
        host_id: str,
        lease_file: Path | None,
        lease_s: float = WATCHDOG_LEASE_S,
        options: Sequence[str] = (),
    ) -> None:
        """`lease_file` is shared by the host's watchdogs; `options` go on the command line."""
        self._command = (
            *(sys.executable, "-m", "worker.watchdog.process"),
            *("--docker", docker_url),
            *("--host-id", host_id),
            *("--lease-s", str(lease_s)),
            *("--patience-s", str(PATIENCE_S)),
            *("--note", "" if lease_file is None else str(lease_file)),
            *options,
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The watchdog's process id; None before it was started."""
        return None if self._process is None else self._process.pid

    def renewed(self, at: float) -> None:
        """Send a renewal, which counts from `at` by `uptime_s`; start the watchdog if needed."""
        if self._process is None or self._process.poll() is not None:
            if self._process is not None:
                log.warning("watchdog.gone", code=self._process.returncode)
            self._start()
        self._write(f"{at}\n".encode())

    def announce_shutdown(self) -> None:
        """Send that this worker ends in good order and starts no more containers.

        The watchdog then stays only while a `strict` container runs.
        """
        self._write(FAREWELL + b"\n")

    def close(self) -> None:
        """Close the pipe; leave the watchdog running if it does not exit within `FAREWELL_S`."""
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
            # A session of its own: signals of a terminal, such as Ctrl-C, reach only the worker.
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


def shared_lease_file(folder: Path, host_id: str, docker_url: str) -> Path | None:
    """Return the file that a host's watchdogs share; None if others can write to the folder.

    Its name contains the host id and a hash of the engine's URL, because a host of the same id on
    another engine is another host. Without the file a watchdog can't know that a new worker has
    adopted the containers of the worker that was killed.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        log.warning("watchdog.no_folder", folder=str(folder), error=repr(error))
        return None
    owned = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not owned or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        log.warning("watchdog.no_folder", folder=str(folder), error="others may write to it")
        return None
    engine = hashlib.sha256(docker_url.encode()).hexdigest()[:8]
    return folder / f"{host_id}-{engine}.lease"


def _pipe(process: subprocess.Popen[bytes]) -> IO[bytes]:
    if process.stdin is None:
        raise ValueError("a watchdog is started with a pipe")
    return process.stdin
