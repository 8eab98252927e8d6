"""Who runs beside whom, where two processes run tests with servers at the same time."""

from collections.abc import Generator
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_SH, flock
from pathlib import Path


@contextmanager
def turn(folder: Path, *, alone: bool) -> Generator[None]:
    """Wait until nobody has a turn `alone`; if this one is to be so, until nobody has any.

    The processes that take turns give the same folder. Whoever waits to be alone is next: the
    others line up behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "turns").open("w") as held:
        with (folder / "turns-line").open("w") as line:
            flock(line, LOCK_EX)
            flock(held, LOCK_EX if alone else LOCK_SH)
        yield
