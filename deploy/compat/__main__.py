"""`make compat`: the end-to-end tests on RabbitMQ and Docker Engine of a newer Debian.

It makes a Debian in a folder, once, and runs pytest with the servers from there. Whatever pytest
starts, it stops.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, NoReturn

from deploy.local.builder import run
from deploy.local.errors import CannotProvide, StackError
from deploy.local.layout import ROOT
from deploy.local.locks import exclusive
from deploy.local.packages import Need, ensure
from deploy.local.progress import Progress
from deploy.local.tree import VARIABLE

if TYPE_CHECKING:
    from pathlib import Path

SUITE = "trixie"
PACKAGES = ("rabbitmq-server", "docker.io", "iptables", "iproute2", "ca-certificates")
TREES = ROOT / "var" / "trees"
_NEEDS = (
    Need("debootstrap", "debootstrap", "makes a Debian in a folder"),
    Need("unshare", "util-linux", "gives each server a root of its own"),
)
_BOOTSTRAP_S = 1_800.0
TESTS = "tests/e2e"


def main(options: list[str]) -> NoReturn:
    """Become pytest with these options."""
    progress = Progress()
    try:
        tree = ensure_tree(TREES / SUITE, progress)
    except StackError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from None
    for name in ("rabbitmq-server", "docker.io"):
        progress.say(f"{SUITE}: {name} {version_of(tree, name)}")
    os.chdir(ROOT)
    command = [sys.executable, "-m", "pytest", *options, TESTS]
    # In place of this process, so that signals reach pytest, which stops what it has started.
    os.execve(sys.executable, command, {**os.environ, VARIABLE: str(tree)})  # noqa: S606


def ensure_tree(tree: Path, progress: Progress) -> Path:
    """Make the tree if it is not there; raises `CannotProvide`, `StackError`."""
    if os.geteuid() != 0:
        raise CannotProvide("Only root can make a Debian in a folder and start its servers.")
    tree.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(tree.with_suffix(".lock")):
        if tree.is_dir():
            return tree
        ensure(_NEEDS, progress.say)
        partial = tree.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        with progress.step(f"{SUITE} (two minutes)") as step:
            # In a mount namespace of its own, so that no mount below the folder outlives it.
            run(
                ["unshare", "--mount", "--propagation", "private", "debootstrap",
                 "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(partial)],
                _BOOTSTRAP_S,
            )  # fmt: skip
            partial.rename(tree)
            step.result = f"{SUITE} is in {tree}"
    return tree


def version_of(tree: Path, package: str) -> str:
    """Return a package's version, as the tree's own list says it."""
    status = (tree / "var/lib/dpkg/status").read_text()
    _, _, entry = status.partition(f"Package: {package}\n")
    return entry.partition("\nVersion: ")[2].partition("\n")[0]


if __name__ == "__main__":
    main(sys.argv[1:])
