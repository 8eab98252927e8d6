"""Where the servers of a session keep what they write."""

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

from deploy.local.locks import exclusive

MEMORY = Path("/dev/shm")
PREFIX = f"modelyard-tests-{os.getuid()}-"
ROOM = 8 << 30
"""Bytes that must be free in memory: twice as much as all servers of a run write."""


@contextmanager
def data_folder(on_disk: Path) -> Generator[Path]:
    """Make a folder in memory; where there is not enough of it, return the one on disk.

    Making what they write durable is most of what servers do for tests, and no test asks whether
    something outlives the machine.
    """
    if not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < ROOM:
        yield on_disk
        return
    with exclusive(MEMORY / f"{PREFIX}lock"):
        _remove_what_killed_sessions_left()
        own = Path(tempfile.mkdtemp(prefix=PREFIX, dir=MEMORY))
        own.chmod(0o755)  # RabbitMQ runs under an account of its own and has to get in
        lock = (own / "lock").open("w")
        flock(lock, LOCK_EX)
    with lock:
        try:
            yield own
        finally:
            shutil.rmtree(own, ignore_errors=True)


def _remove_what_killed_sessions_left() -> None:
    for lock in MEMORY.glob(f"{PREFIX}*/lock"):
        with lock.open() as opened:
            try:
                flock(opened, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                continue  # it lives
            shutil.rmtree(lock.parent, ignore_errors=True)
