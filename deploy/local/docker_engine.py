"""A private Docker engine; several of them on one machine stand for several hosts."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import httpx2

from deploy.local import engine_api
from deploy.local.daemon import Daemon
from deploy.local.engine_network import EngineNetwork, free_block, is_free
from deploy.local.errors import CannotProvide
from deploy.local.locks import exclusive
from deploy.local.packages import ENGINE, explain, find_program
from deploy.local.tree import inside, program_in, servers_tree

_RUN = Path("/run")
_SHIM_SOCKETS = Path("/run/containerd/s")
_DEVICE_HOOK = "nvidia-container-runtime-hook"
"""Docker looks for it when it starts, and takes requests for devices only where it is."""
_READY_S = 60.0
_STOP_S = 30.0


class DockerEngine:
    """A dockerd with its images and containers under `folder`, separate from other engines.

    The socket and the engine's transient state are in a short path under `/run`, because the path
    of a socket is limited to 108 bytes. The engine mounts in a mount namespace that ends with it.
    Only root can start one.
    """

    def __init__(self, folder: Path, *, logs: Path | None = None) -> None:
        self.folder = folder
        self.daemon = Daemon("dockerd", folder, log=logs / "dockerd.log" if logs else None)
        self.version = ""
        digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:10]
        self._transient = _RUN / f"modelyard-{digest}"
        self._bridge = f"my-{digest}"
        self._block_file = folder / "addresses"

    @property
    def url(self) -> str:
        return f"unix://{self._transient}/docker.sock"

    @property
    def running(self) -> bool:
        return self.daemon.process is not None

    @property
    def network(self) -> EngineNetwork | None:
        """Bridge and addresses; None before the first start."""
        if not self._block_file.exists():
            return None
        return EngineNetwork(self._bridge, ipaddress.IPv4Network(self._block_file.read_text()))

    def start(self) -> None:
        """Start the engine and return when it answers. Raises `StartFailed`, `CannotProvide`.

        Engines start one after the other, even those of different processes. Otherwise they would
        race for the packet filter's chains and for a free address block.
        """
        if not self.daemon.ours:
            if os.geteuid() != 0:
                message = (
                    "Only root can start a private Docker engine: set DOCKER_HOST to a running one."
                )
                raise CannotProvide(message)
            with exclusive(_RUN / "modelyard-engines.lock"), ExitStack() as undo:
                undo.callback(self.stop)
                self._launch()
                self.wait_ready()
                undo.pop_all()

    def wait_ready(self) -> None:
        """Wait until the engine answers."""

        def answers() -> bool:
            self.version = engine_api.version(self.url) or ""
            return bool(self.version)

        self.daemon.wait_ready(answers, _READY_S)

    def stop(self) -> None:
        """Kill the containers, stop the engine, remove its bridges, packet rules and sockets."""
        if self.running:
            self._kill_containers()
        self.daemon.stop(_STOP_S)
        if network := self.network:
            network.remove()
        self._remove_shim_sockets()
        shutil.rmtree(self._transient, ignore_errors=True)

    def restart(self) -> None:
        """Stop in an orderly way and start again on the same socket and data."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """SIGKILL the engine alone; its containers keep running, as they do on a real host."""
        self.daemon.kill()

    def pause(self) -> None:
        self.daemon.pause()

    def resume(self) -> None:
        self.daemon.resume()

    def release(self) -> None:
        """Keep the engine running after the command that started it has ended."""
        self.daemon.release()

    def _launch(self) -> None:
        self.daemon.claim()
        network = self._claim_network()
        # Stale pid files of a crashed engine would make the new one wait for dead processes.
        shutil.rmtree(self._transient, ignore_errors=True)
        self._transient.mkdir(mode=0o700)
        configuration = self.folder / "daemon.json"  # in place of the system's
        configuration.write_text("{}")
        network.create()
        self.daemon.spawn(
            [
                *self._dockerd(),
                *("--config-file", configuration),
                *("--host", self.url),
                *("--data-root", self.folder / "engine"),
                *("--exec-root", self._transient / "exec"),
                *("--pidfile", self._transient / "docker.pid"),
                *("--bridge", network.bridge),
                *("--default-address-pool", f"base={network.pool},size=24"),
            ],
            self._environment(),
        )

    def _dockerd(self) -> list[str | Path]:
        """Return how to call the engine in a mount namespace of its own."""
        if tree := servers_tree():
            return [*inside(tree, self.folder), program_in(tree, "usr/sbin/dockerd")]
        return [_program("unshare"), "--mount", "--propagation", "slave", _program("dockerd")]

    def _environment(self) -> dict[str, str]:
        path = [os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]
        if find_program(_DEVICE_HOOK) is None:
            path.append(str(self._stand_in_for_device_hook()))
        return {**os.environ, "PATH": os.pathsep.join(path)}

    def _stand_in_for_device_hook(self) -> Path:
        """Make the program without which an engine binds no devices; return its folder.

        It does nothing. So a machine without a GPU can bind devices that its worker declares: the
        container finds their uuids in `NVIDIA_VISIBLE_DEVICES`.
        """
        folder = self.folder / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / _DEVICE_HOOK
        program.write_text("#!/bin/sh\nexit 0\n")
        program.chmod(0o755)
        return folder

    def _claim_network(self) -> EngineNetwork:
        """Reuse the block of the last start, because users' networks may have addresses in it.

        That is found even if somebody removed the folder while the engine ran, or after a crash.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        known = EngineNetwork.found(self._bridge) or self.network
        if known:
            known.remove()  # a crash may have left its bridges and rules
            if is_free(known.block):
                self._block_file.write_text(str(known.block))
                return known
            shutil.rmtree(self.folder / "engine" / "network", ignore_errors=True)
        network = EngineNetwork(self._bridge, free_block())
        self._block_file.write_text(str(network.block))
        return network

    def _remove_shim_sockets(self) -> None:
        """Remove the sockets that killed container shims have left outside of our folders.

        The naming is that of containerd 1.4 and newer, `SocketAddress` in its runtime v2 shim.
        """
        for container in (self.folder / "engine" / "containers").glob("*"):
            name = self._transient / "exec/containerd/containerd.sock/moby" / container.name
            digest = hashlib.sha256(str(name).encode()).hexdigest()
            (_SHIM_SOCKETS / digest).unlink(missing_ok=True)

    def _kill_containers(self) -> None:
        try:
            engine_api.kill_containers(self.url)
        except httpx2.HTTPError:
            return  # a paused or broken engine; `daemon.stop` kills the containers' processes too


def _program(name: str) -> Path:
    found = find_program(name)
    if found is None:
        raise CannotProvide(explain(ENGINE))
    return found
