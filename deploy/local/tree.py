"""A Debian of another version in a folder, whose RabbitMQ and Docker Engine are used instead.

`MODELYARD_SERVERS_TREE` names the folder; `deploy.compat` makes it. Each server from it runs in a
mount namespace of its own, in which the tree is the root. It has this machine's /run, /dev, /proc
and /sys, the checkout and the server's own folder at their usual paths, so that paths and sockets
are the same on both sides. All of these mounts end with the server.

A plain chroot does not do for a Docker Engine: it mounts its root anew when it imports an image,
and the root of a chroot is no mount.
"""

from __future__ import annotations

import os
from pathlib import Path

from deploy.local.errors import CannotProvide
from deploy.local.layout import ROOT

VARIABLE = "MODELYARD_SERVERS_TREE"
# $1 is the tree, $2 the checkout, $3 the server's folder; what follows is the command.
_ENTER = """\
set -eu
tree=$1 checkout=$2 folder=$3
shift 3
mount --bind "$tree" "$tree"
for shared in /proc /sys /dev /run; do
    mount --rbind "$shared" "$tree$shared"
done
for own in "$checkout" "$folder"; do
    mkdir -p "$tree$own"
    mount --bind "$own" "$tree$own"
done
for file in /etc/resolv.conf /etc/hosts; do
    touch "$tree$file"
    mount --bind "$file" "$tree$file"
done
mkdir -p "$tree/outside"
cd "$tree"
pivot_root . outside
umount --lazy /outside
cd "$folder"
exec "$@"
"""


def servers_tree() -> Path | None:
    """Return the tree; None if the servers of this machine are meant. Raises `CannotProvide`."""
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    tree = Path(named).resolve()
    if not (tree / "usr").is_dir():
        message = f"{VARIABLE} names {tree}, which holds no system; `make compat` makes one."
        raise CannotProvide(message)
    return tree


def inside(tree: Path, folder: Path) -> list[str | Path]:
    """Return what to put before a command that is to run in the tree, in `folder`."""
    enter = ("sh", "-c", _ENTER, "enter", tree, ROOT, folder.resolve())
    return ["unshare", "--mount", "--propagation", "slave", *enter]


def program_in(tree: Path, pattern: str) -> Path:
    """Return the path, inside the tree, of the program that matches; raises `CannotProvide`."""
    found = sorted(tree.glob(pattern))
    if not found:
        message = f"{tree} has no {pattern}; remove it, and `make compat` makes it anew."
        raise CannotProvide(message)
    return Path("/") / found[-1].relative_to(tree)
