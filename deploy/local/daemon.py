"""A background process with a record on disk, so that a later command can find and stop it."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
from dataclasses import asdict
from typing import TYPE_CHECKING

from deploy.local.errors import InUse, StartFailed
from deploy.local.locks import exclusive
from deploy.local.processes import ProcessId, carrying, kill_all, with_descendants
from deploy.local.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_STOPPED_S = 10.0
_MARK = "MODELYARD_LOCAL_DAEMON"
_LOG_LINES = 25


class Daemon:
    """A process that runs in its own session and may outlive the command that started it.

    `folder/NAME.json` records the process and its owner, which is the command that started it. If
    the owner died without stopping the process, the next start in the same folder kills it. If the
    owner lives, or has called `release`, the next start raises `InUse`.

    The process has a variable in its environment that marks it. `stop` ends every process with that
    mark, and their children, so that processes which left the session are ended too.
    """

    def __init__(self, name: str, folder: Path, *, log: Path | None = None) -> None:
        self.name = name
        self.folder = folder
        self.log = log or folder / f"{name}.log"
        self._record = folder / f"{name}.json"
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> ProcessId | None:
        """The running process, whichever command started it; None if there is none."""
        if self._child:
            self._child.poll()  # reaps it, if it has exited
        process = self._recorded("process")
        return process if process and process.alive else None

    @property
    def ours(self) -> bool:
        """Whether this object started the process, and it still runs."""
        return self._child is not None and self.process is not None

    @property
    def released(self) -> bool:
        """Whether the process runs without an owner, until a command stops it."""
        return self.process is not None and self._recorded("owner") is None

    @property
    def owner(self) -> ProcessId | None:
        """The command that started the process and still runs; None after `release`."""
        owner = self._recorded("owner")
        return owner if owner and owner.alive else None

    def claim(self) -> None:
        """Kill what a dead owner has left; raises `InUse` if the owner lives or has released it."""
        process = self.process
        owner = self.owner
        if process and (owner or self.released):
            by = f"command {owner.pid}" if owner else "the stack in the background"
            message = f"{self.name} already runs in {self.folder} (process {process.pid}, of {by})"
            raise InUse(message)
        kill_all(self.family())

    def spawn(
        self,
        argv: Sequence[str | Path],
        env: Mapping[str, str],
        *,
        cwd: Path | None = None,
        user: str | None = None,
    ) -> None:
        """Start the process; its output goes to the end of `log`. Raises `InUse`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(self.folder / f"{self.name}.lock"), self.log.open("ab") as log:
            self.claim()
            self._child = subprocess.Popen(
                argv,
                env={**env, _MARK: str(self._record.resolve())},
                cwd=cwd or self.folder,
                user=user,
                group=pwd.getpwnam(user).pw_gid if user else None,
                extra_groups=[] if user else None,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._write_record(ProcessId.of(self._child.pid), owner=ProcessId.of(os.getpid()))

    def wait_ready(self, probe: Callable[[], bool], seconds: float) -> None:
        """Wait until `probe` is true; `StartFailed` if the process exits or time runs out."""

        def ready() -> bool:
            self.check()
            return probe()

        try:
            wait_until(ready, seconds, self.name)
        except TimeoutError:
            raise StartFailed(self._failure(f"was not ready within {seconds:g} s")) from None

    def check(self) -> None:
        """Raise `StartFailed` if the process has exited."""
        if self.process is None:
            raise StartFailed(self._failure("exited while it was starting"))

    def release(self) -> None:
        """Keep the daemon running after the command that started it has ended."""
        if process := self.process:
            self._write_record(process, owner=None)

    def terminate(self) -> ProcessId | None:
        """Send SIGTERM without waiting for its effect; return the process that it went to."""
        if process := self.process:
            process.send(signal.SIGTERM)
            process.send(signal.SIGCONT)  # a paused process would not see the first one
        return process

    def stop(self, grace: float) -> None:
        """Send SIGTERM, and SIGKILL after `grace` seconds; then kill what the process has left."""
        family = self.family()
        if process := self.terminate():
            try:
                wait_until(lambda: self.process is None, grace, f"{self.name} stopped")
            except TimeoutError:
                process.send(signal.SIGKILL)
        kill_all(family | self.family())
        if self._child:
            self._child.wait()
            self._child = None
        self._record.unlink(missing_ok=True)

    def kill(self) -> None:
        """Send SIGKILL, as in a crash; `stop` ends what the process leaves behind."""
        if process := self.process:
            process.send(signal.SIGKILL)
            wait_until(lambda: self.process is None, 10, f"{self.name} killed")

    def pause(self) -> None:
        """Send SIGSTOP: the process and its sockets stay, but it answers nobody.

        Returns when all of its threads have stopped, which takes a while on a busy machine.
        """
        if process := self.process:
            process.send(signal.SIGSTOP)
            wait_until(lambda: process.stopped, _STOPPED_S, f"{self.name} stopped running")

    def resume(self) -> None:
        if process := self.process:
            process.send(signal.SIGCONT)

    def family(self) -> set[ProcessId]:
        """Find every process with this daemon's mark, and the descendants of those."""
        return with_descendants(carrying(_MARK, str(self._record.resolve())))

    def log_end(self) -> str:
        """Return the last lines of the log, for a person."""
        if not self.log.exists():
            return "(no log was written)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-_LOG_LINES:])

    def _recorded(self, role: str) -> ProcessId | None:
        if not self._record.exists():
            return None
        fields = json.loads(self._record.read_text())[role]
        return ProcessId(**fields) if fields else None

    def _write_record(self, process: ProcessId | None, owner: ProcessId | None) -> None:
        record = {
            "process": asdict(process) if process else None,
            "owner": asdict(owner) if owner else None,
        }
        partial = self._record.with_suffix(".partial")
        partial.write_text(json.dumps(record, indent=2))
        partial.replace(self._record)

    def _failure(self, what: str) -> str:
        return f"{self.name} {what}. The end of {self.log}:\n{self.log_end()}"
