"""Builds images on an engine with the `docker` command, on machines of any kind of network."""

import json
import os
import shutil
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deploy.local.errors import StackError

Progress = Callable[[str], None]

INPUTS_LABEL = "modelyard.inputs"
"""The label with a hash of what an image was built from."""
_CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")

# Seconds.
REGISTRY_ANSWERS_WITHIN = 15.0
_SHORT = 60.0
_PULL = 1800.0
_BUILD = 1800.0


class ImagesError(StackError):
    """An image could not be built; the message says why and what would help."""


class Builder:
    """One Docker engine, used through the `docker` command."""

    def __init__(self, docker_host: str) -> None:
        self._host = docker_host

    def run(
        self,
        *arguments: str,
        deadline: float = _SHORT,
        on_line: Progress | None = None,
    ) -> str:
        # The classic builder, which engine 20.10 has; the newer one needs a plugin.
        env = {**os.environ, "DOCKER_BUILDKIT": "0"}
        return run(["docker", "-H", self._host, *arguments], deadline, on_line, env)

    def has(self, image: str) -> bool:
        return self._labels(image) is not None

    def made_from(self, image: str) -> str | None:
        """Return the hash of the image's inputs, from its label."""
        return (self._labels(image) or {}).get(INPUTS_LABEL)

    def _labels(self, image: str) -> dict[str, str] | None:
        try:
            found = self.run("image", "inspect", "--format", "{{json .Config.Labels}}", image)
        except ImagesError as error:
            if "no such image" in str(error).lower():
                return None
            raise
        labels: dict[str, str] | None = json.loads(found)
        return labels or {}

    def pull(self, image: str) -> bool:
        """Pull an image; False if no registry answers in time or it does not have the image."""
        command = ["docker", "-H", self._host, "pull", image]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as pull:
            assert pull.stdout is not None  # noqa: S101 - for the type checker: it is a pipe
            first_line_timer = threading.Timer(REGISTRY_ANSWERS_WITHIN, pull.kill)
            pull_timer = threading.Timer(_PULL, pull.kill)
            first_line_timer.start()
            pull_timer.start()
            try:
                # The first line appears when the registry has sent the manifest.
                for _line in pull.stdout:
                    first_line_timer.cancel()
            finally:
                first_line_timer.cancel()
                pull_timer.cancel()
        return pull.returncode == 0

    def build(
        self, tag: str, context: Path, progress: Progress, *, base: str, options: Sequence[str] = ()
    ) -> None:
        """Build an image from `context`, whose Dockerfile takes the argument BASE_IMAGE.

        This machine's CA bundle is put into the context, and the network's settings are given as
        arguments, so that a Dockerfile can install packages.
        """
        if _CA_BUNDLE.exists():
            shutil.copyfile(_CA_BUNDLE, context / "build-ca.crt")
        self.run(
            "build", "--network=host", "--tag", tag, "--build-arg", f"BASE_IMAGE={base}",
            *_network_arguments(), *options, str(context),
            deadline=_BUILD,
            on_line=lambda line: progress(f"{tag}: {line[:80]}") if line[:5] == "Step " else None,
        )  # fmt: skip


def _network_arguments() -> list[str]:
    """Return build arguments about the network; docker takes their values from our environment."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
             "PIP_INDEX_URL")  # fmt: skip
    return [word for name in names if name in os.environ for word in ("--build-arg", name)]


def run(
    command: Sequence[str],
    deadline: float,
    on_line: Progress | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a command and return its output (both streams); raises `ImagesError` with its end."""
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env,
            errors="replace",
        )  # fmt: skip
    except FileNotFoundError:
        raise ImagesError(f"The command {command[0]} is missing.") from None
    late = threading.Event()

    def end_it() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(deadline, end_it)
    timer.start()
    lines: deque[str] = deque(maxlen=2000)
    try:
        with process:
            assert process.stdout is not None  # noqa: S101 - for the type checker: it is a pipe
            for line in process.stdout:
                lines.append(line)
                if on_line is not None:
                    on_line(line.rstrip())
    finally:
        timer.cancel()
    if process.returncode != 0:
        why = f"took more than {deadline:.0f} s" if late.is_set() else "failed"
        end = "".join(list(lines)[-20:]).rstrip()
        raise ImagesError(f"`{' '.join(command[:6])} ...` {why}:\n{end}")
    return "".join(lines)
