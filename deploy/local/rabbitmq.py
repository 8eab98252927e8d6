"""A private RabbitMQ node."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import stat
import subprocess
from contextlib import ExitStack
from pathlib import Path

from deploy.local.amqp_probe import QueueCounts, broker_version, queue_counts
from deploy.local.daemon import Daemon
from deploy.local.errors import CannotProvide, StackError
from deploy.local.packages import BROKER, explain, find_program
from deploy.local.ports import LOOPBACK, free_port, is_free
from deploy.local.tree import inside, program_in, servers_tree

_READY_S = 90.0
_STOP_S = 20.0
_ACCOUNT = "rabbitmq"  # made by the package
_NODE = "modelyard@localhost"
# The program in /usr/sbin is a wrapper that refuses users other than root and rabbitmq.
_PROGRAMS = Path("/usr/lib/rabbitmq/bin")
# In a tree; newer packages have no such folder.
_PROGRAMS_OF_TREE = "usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin"
_CONFIGURATION = """\
listeners.tcp.1 = 127.0.0.1:{port}
log.file = false
log.console = true
log.console.level = info
disk_free_limit.absolute = 50MB
raft.wal_max_size_bytes = 67108864
max_message_size = {max_message_bytes}
"""
MAX_MESSAGE_BYTES = 8 << 20
"""The largest message of Modelyard's that is valid."""
LARGEST_MESSAGE_BYTES = 128 << 20
"""RabbitMQ's own default, for tests of larger messages."""
# One scheduler that does not spin: several nodes share a small machine.
_ERLANG = "+S 1:1 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}"


class RabbitMQ:
    """One node on loopback, with its data, log and own epmd under `folder`.

    If root starts it, it runs under the account `rabbitmq`, provided that this account can enter
    the folder. It keeps its port from one start to the next, unless another program uses the port
    when this object starts it for the first time.
    """

    def __init__(
        self,
        folder: Path,
        *,
        logs: Path | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self.folder = folder
        self._max_message_bytes = max_message_bytes
        self.daemon = Daemon("rabbitmq", folder, log=logs / "rabbitmq.log" if logs else None)
        self.version = ""
        self._ports_file = folder / "ports.json"
        self._ports = self._known_ports()
        self._settled = False
        """True once the node was started, so that clients may know its ports."""

    @property
    def port(self) -> int:
        return self._ports["amqp"]

    @property
    def url(self) -> str:
        # No slash at the end: some clients would read it as a virtual host with an empty name.
        return f"amqp://guest:guest@{LOOPBACK}:{self.port}"

    @property
    def running(self) -> bool:
        return self.daemon.process is not None

    def start(self) -> None:
        """Start the node and return when a client could log in. Raises `StartFailed`."""
        with ExitStack() as undo:
            undo.callback(self.stop)
            self.launch()
            self.wait_ready()
            undo.pop_all()

    def launch(self) -> None:
        """Start the node without waiting for it, unless this object has started it already."""
        if self.daemon.ours:
            return
        self.daemon.claim()
        if not self._settled:
            self._ports = {
                role: port if is_free(port) else free_port() for role, port in self._ports.items()
            }
            self._settled = True
        self.folder.mkdir(parents=True, exist_ok=True)
        self._ports_file.write_text(json.dumps(self._ports))
        self._configure()
        account = self._account()
        if account:
            self._change_owner(account)
        self.daemon.spawn(self._program("rabbitmq-server"), self._environment(), user=account)

    def wait_ready(self) -> None:
        """Wait until a client can log in and open a channel."""

        def answers() -> bool:
            self.version = broker_version(self.url) or ""
            return bool(self.version)

        self.daemon.wait_ready(answers, _READY_S)

    def queue_counts(self, queue: str) -> QueueCounts | None:
        """Return the ready messages and consumers of a queue; None if it does not exist."""
        return queue_counts(self.url, queue)

    def ctl(self, *arguments: str, seconds: float = 60.0) -> str:
        """Run rabbitmqctl against this node and return what it prints. Raises `StackError`."""
        done = subprocess.run(
            [*self._program("rabbitmqctl"), "--quiet", *arguments],
            env=self._environment(),
            cwd=self.folder,
            user=self._account(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        if done.returncode != 0:
            message = f"rabbitmqctl {' '.join(arguments)}: {done.stderr or done.stdout}"
            raise StackError(message)
        return done.stdout

    def stop(self) -> None:
        self.daemon.stop(_STOP_S)

    def restart(self) -> None:
        """Stop in an orderly way and start again on the same port and data."""
        self.stop()
        self.start()

    def kill(self) -> None:
        self.daemon.kill()

    def pause(self) -> None:
        self.daemon.pause()

    def resume(self) -> None:
        self.daemon.resume()

    def release(self) -> None:
        """Keep the node running after the command that started it has ended."""
        self.daemon.release()

    def _known_ports(self) -> dict[str, int]:
        if self._ports_file.exists():
            ports: dict[str, int] = json.loads(self._ports_file.read_text())
            return ports
        return {role: free_port() for role in ("amqp", "distribution", "epmd")}

    def _configure(self) -> None:
        for name in ("home", "log"):
            (self.folder / name).mkdir(exist_ok=True)
        configuration = _CONFIGURATION.format(
            port=self.port, max_message_bytes=self._max_message_bytes
        )
        (self.folder / "rabbitmq.conf").write_text(configuration)
        (self.folder / "enabled_plugins").write_text("[].\n")
        (self.folder / "environment").write_text("")  # in place of the system's settings

    def _environment(self) -> dict[str, str]:
        own = {
            "NODENAME": _NODE,
            "MNESIA_BASE": self.folder / "mnesia",
            "LOG_BASE": self.folder / "log",
            "PID_FILE": self.folder / "pid",
            "CONFIG_FILE": self.folder / "rabbitmq.conf",
            "ADVANCED_CONFIG_FILE": self.folder / "advanced.config",
            "ENABLED_PLUGINS_FILE": self.folder / "enabled_plugins",
            "CONF_ENV_FILE": self.folder / "environment",
            "DIST_PORT": self._ports["distribution"],
            "SERVER_ADDITIONAL_ERL_ARGS": _ERLANG,
        }
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(self.folder / "home"),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "ERL_EPMD_PORT": str(self._ports["epmd"]),
            # Makes the start script become the node instead of its parent: one process to signal.
            "RUNNING_UNDER_SYSTEMD": "true",
            **{f"RABBITMQ_{name}": str(value) for name, value in own.items()},
        }

    def _program(self, name: str) -> list[str | Path]:
        """Return how to call one of RabbitMQ's programs."""
        if tree := servers_tree():
            return [*inside(tree, self.folder), program_in(tree, f"{_PROGRAMS_OF_TREE}/{name}")]
        packaged = _PROGRAMS / name
        found = packaged if packaged.exists() else find_program(name)
        if found is None:
            raise CannotProvide(explain(BROKER))
        return [found]

    def _account(self) -> str | None:
        """Return the account to run the node as; None for our own, as in a tree."""
        if os.geteuid() != 0 or servers_tree():
            return None
        try:
            pwd.getpwnam(_ACCOUNT)
        except KeyError:
            return None
        above = self.folder.resolve().parents
        open_to_all = all(folder.stat().st_mode & stat.S_IXOTH for folder in above)
        return _ACCOUNT if open_to_all else None

    def _change_owner(self, account: str) -> None:
        for path in [self.folder, *self.folder.rglob("*")]:
            if path.owner() != account:
                shutil.chown(path, account, account)
