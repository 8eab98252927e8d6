"""Locks across processes; the kernel releases them when a process dies."""

from __future__ import annotations

import fcntl
from contextlib import contextmanager
from typing import TYPE_CHECKING

from deploy.local.errors import InUse
from deploy.local.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import IO

LOCK_TIMEOUT_S = 120.0


@contextmanager
def exclusive(path: Path, seconds: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold the lock file `path`; raises `InUse` if another command holds it for `seconds`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            wait_until(lambda: _try_lock(file), seconds, f"lock {path}")
        except TimeoutError:
            message = (
                f"{path} is held by another command that still runs; try again when it has ended"
            )
            raise InUse(message) from None
        yield


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
