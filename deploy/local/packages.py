"""The system packages that the local stack needs, and their installation."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.local.errors import CannotProvide, InstallFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

POLICY = Path("/usr/sbin/policy-rc.d")
_OS_RELEASE = Path("/etc/os-release")
_SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_NO_SERVICES = "#!/bin/sh\n# Packages are being installed; their services stay off.\nexit 101\n"


@dataclass(frozen=True)
class Need:
    """A program, the Debian package it comes in, and what it is for."""

    program: str
    package: str
    why: str

    @property
    def met(self) -> bool:
        return find_program(self.program) is not None


BROKER = (Need("rabbitmq-server", "rabbitmq-server", "carries the messages"),)
ENGINE = (
    Need("dockerd", "docker.io", "runs the containers"),
    Need("iptables", "iptables", "publishes container ports"),
    Need("ip", "iproute2", "gives every engine its own bridge"),
)
IMAGES = (
    Need("docker", "docker.io", "builds the images"),
    Need("debootstrap", "debootstrap", "makes a base image where no image registry is reachable"),
    Need("busybox", "busybox-static", "makes the small image of the tests"),
)
COMPOSE = (Need("docker-compose", "docker-compose", "reads deploy/compose.yaml"),)
CLIENTS = (Need("amqp-publish", "amqp-tools", "publishes from the command line"),)
CLOCKS = (Need("faketime", "faketime", "gives a process a wrong clock, for tests of faults"),)

UNITS = (Need("systemd-analyze", "systemd", "checks the units of the services"),)
PROMETHEUS = (Need("prometheus", "prometheus", "reads the metrics, the alerts and the dashboard"),)
PROXY = (
    Need("nginx", "nginx", "stands before the gateway, for the tests of its configuration"),
    Need("openssl", "openssl", "makes the certificate of that test"),
)


def find_program(program: str) -> Path | None:
    """Find a program, also in the system folders that a user's PATH may leave out."""
    folders = os.pathsep.join([os.environ.get("PATH", ""), *_SYSTEM_FOLDERS])
    found = shutil.which(program, path=folders)
    return Path(found) if found else None


def ensure(needs: Iterable[Need], say: Callable[[str], None]) -> None:
    """Install what is missing, or raise `CannotProvide` with one message that lists it all.

    Installs only as root on Debian or Ubuntu. Raises `InstallFailed` with the end of apt's
    output. Services of the installed packages are not started.
    """
    missing = [need for need in needs if not need.met]
    if not missing:
        return
    if os.geteuid() != 0 or not _is_debian():
        raise CannotProvide(explain(missing))
    reasons = dict.fromkeys(f"{need.package} ({need.why})" for need in missing)
    say(f"Installing with apt-get: {', '.join(reasons)}")
    _install(sorted({need.package for need in missing}))
    if still := [need for need in missing if not need.met]:
        raise CannotProvide(explain(still))


def explain(missing: Iterable[Need]) -> str:
    """Say in one message what is missing, why it is needed, and what to do about it."""
    needs = list(missing)
    lines = [f"  {need.program}: {need.why}" for need in needs]
    packages = " ".join(sorted({need.package for need in needs}))
    return "\n".join(
        [
            "The local stack needs programs that are not on this machine:",
            *lines,
            f"On Debian or Ubuntu, root installs them with: apt-get install {packages}",
            "Or point MODELYARD_AMQP_URL, MODELYARD_MONGO_URL and DOCKER_HOST at running servers.",
        ]
    )


def _is_debian() -> bool:
    if not _OS_RELEASE.exists() or find_program("apt-get") is None:
        return False
    words = _OS_RELEASE.read_text().replace('"', "").replace("=", " ").split()
    return "debian" in words or "ubuntu" in words


def _install(packages: list[str]) -> None:
    with _services_kept_off():
        _apt("update", "-q")
        _apt("install", "-q", "-y", "--no-install-recommends", *packages)


@contextmanager
def _services_kept_off() -> Iterator[None]:
    """Keep packages from starting their services; restore the earlier policy at the end.

    The file is an interface of Debian's invoke-rc.d: exit status 101 forbids the action.
    """
    before = (POLICY.read_text(), POLICY.stat().st_mode) if POLICY.exists() else None
    POLICY.write_text(_NO_SERVICES)
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        if before is None:
            POLICY.unlink()
        else:
            POLICY.write_text(before[0])
            POLICY.chmod(before[1] & 0o7777)


def _apt(*arguments: str) -> None:
    done = subprocess.run(
        ["apt-get", "-o", "DPkg::Lock::Timeout=120", *arguments],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        end = "\n".join(done.stdout.splitlines()[-20:])
        message = f"apt-get {' '.join(arguments)} exited with {done.returncode}:\n{end}"
        raise InstallFailed(message)
