"""A file system of its own for a server's data, small enough to be filled up. Takes root."""

import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PIECE = bytes(1 << 20)
_AGAIN_S = 0.001


class SmallDisk:
    """A tmpfs at `folder`; for those who write there it is a disk like any other."""

    def __init__(self, folder: Path, *, mib: int) -> None:
        self.folder = folder
        self._mib = mib

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Have the disk in its folder meanwhile."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _run("mount", "-t", "tmpfs", "-o", f"size={self._mib}m,mode=0711", "tmpfs", self.folder)
        try:
            yield
        finally:
            # Lazily: what has not quite died and still has files open must not keep the mount.
            _run("umount", "--lazy", self.folder)

    @contextmanager
    def full(self) -> Iterator[None]:
        """Leave no space meanwhile: what somebody frees is taken at once.

        A server that fails to write gives back what it had written, and its next try might do.
        """
        path = self.folder / "filler"
        over = threading.Event()

        def keep() -> None:
            while not over.wait(_AGAIN_S):
                _fill(filler.fileno())

        with path.open("ab", buffering=0) as filler:
            keeper = threading.Thread(target=keep, daemon=True)
            try:
                _fill(filler.fileno())
                keeper.start()
                yield
            finally:
                over.set()
                if keeper.ident is not None:
                    keeper.join()
                path.unlink()


def _fill(descriptor: int) -> None:
    """Write until there is no space; the last write takes less than it was given."""
    while True:
        try:
            os.write(descriptor, _PIECE)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)
