"""The smallest image that can run a program: a static busybox and nothing else."""

from __future__ import annotations

import io
import subprocess
import tarfile

from deploy.local.errors import StackError
from deploy.local.packages import find_program

NOOP = "modelyard/noop:local"
PROGRAM = ("/bin/busybox", "echo", "null")
"""Prints an empty result as JSON."""
_IMPORT_S = 60.0


def provide(docker_host: str) -> None:
    """Import the image into an engine; raises `StackError`."""
    busybox = find_program("busybox")
    if busybox is None:
        message = "There is no busybox on this machine. On Debian: apt-get install busybox-static"
        raise StackError(message)
    tarball = io.BytesIO()
    with tarfile.open(fileobj=tarball, mode="w") as archive:
        archive.add(busybox.resolve(), "bin/busybox")
    done = subprocess.run(
        ["docker", "-H", docker_host, "import", "-", NOOP],
        input=tarball.getvalue(),
        capture_output=True,
        timeout=_IMPORT_S,
        check=False,
    )
    if done.returncode != 0:
        raise StackError(done.stderr.decode(errors="replace"))
