"""One project of Docker Compose, by its command: version 2, or Debian's 1.29."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

from deploy.local import packages
from deploy.local.builder import ImagesError, run
from deploy.local.errors import StackError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from deploy.local.builder import Progress

_UP_S = 600.0
_UP_TRIES = 3
_SHORT_S = 120.0
_PROBE_S = 20.0


class ComposeProject:
    """The services of one or more Compose files under a name of their own."""

    def __init__(
        self, name: str, files: Sequence[Path], *, env_file: Path, environment: Mapping[str, str]
    ) -> None:
        """`environment` wins over `env_file`; it has to name the engine in DOCKER_HOST."""
        inherited = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("MODELYARD_", "COMPOSE_"))
        }
        self._environment = {**inherited, **environment}
        named = [word for file in files for word in ("--file", str(file))]
        options = ["--project-name", name, "--env-file", str(env_file), *named]
        self._command = [*_compose_command(), *options]

    def up(self, progress: Progress) -> None:
        """Start all services, each when those that it depends on are healthy.

        Begun again if it fails: of several engines on one machine one may lose a race for the
        packet filter, and can then publish no port.
        """
        for left in reversed(range(_UP_TRIES)):
            try:
                self._run("up", "--detach", seconds=_UP_S, on_line=progress)
            except ImagesError as error:
                if not left:
                    raise
                progress(str(error).splitlines()[-1])
            else:
                return

    def down(self) -> None:
        """Remove all containers, networks and volumes of the project."""
        self._run("down", "--volumes", "--remove-orphans", "--timeout", "30", seconds=_UP_S)

    def logs(self, *services: str, lines: int = 40) -> str:
        return self._run("logs", "--no-color", f"--tail={lines}", *services)

    def once(self, service: str, *arguments: str) -> str:
        """Run a command in a new container of a service; return what it prints on stdout."""
        done = subprocess.run(
            [*self._command, "run", "--rm", "-T", service, *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SHORT_S,
            check=False,
        )
        if done.returncode != 0:
            raise StackError(f"{service} {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def inspect(self, service: str) -> dict[str, Any]:
        """Return Docker's description of the container of a service."""
        container = self._run("ps", "--quiet", service).split()[-1]
        return self.inspect_container(container)

    def inspect_container(self, container: str) -> dict[str, Any]:
        """Return Docker's description of any container."""
        found: list[dict[str, Any]] = json.loads(self._docker("inspect", container))
        return found[0]

    def kill_processes(self, service: str) -> None:
        """SIGKILL a service from within its container, as a crash would: it is restarted.

        (After `docker kill` it would not be: that counts as the operator's wish.)
        """
        container = self.inspect(service)
        shared = container["HostConfig"]["PidMode"] == "host"
        target = container["State"]["Pid"] if shared else -1
        try:
            self._docker(
                *("exec", container["Id"], "python3", "-c"),
                f"import os, signal; os.kill({target}, signal.SIGKILL)",
            )
        except ImagesError:
            return  # the command was among the killed

    def _docker(self, *arguments: str) -> str:
        return run(["docker", *arguments], _SHORT_S, env=self._environment)

    def _run(
        self, *arguments: str, seconds: float = _SHORT_S, on_line: Progress | None = None
    ) -> str:
        return run([*self._command, *arguments], seconds, on_line, self._environment)


def _compose_command() -> list[str]:
    plugin = ["docker", "compose"]
    if shutil.which("docker"):
        probe = subprocess.run(
            [*plugin, "version"], capture_output=True, timeout=_PROBE_S, check=False
        )
        if probe.returncode == 0:
            return plugin
    packages.ensure(packages.COMPOSE, lambda _: None)
    return ["docker-compose"]
