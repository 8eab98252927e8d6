"""A body process for tests: `python -m tests.support.body_tasks`."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from modelyard.process.body_child import Part, serve


def echo(body: bytes, *, times: int) -> Iterator[Part]:
    """Give the body back, so many times."""
    for number in range(times):
        yield json.dumps({"number": number}).encode(), body


def fail(_body: bytes) -> Iterator[Part]:
    """Give half an answer."""
    yield b"{}", b"half"
    raise ValueError("no")


def die(_body: bytes, *, once: str | None = None) -> Iterator[Part]:
    """End the process; with a path, only if there is nothing yet."""
    if once is None or not Path(once).exists():
        if once is not None:
            Path(once).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    yield b"{}", b"alive"


def hang(_body: bytes) -> Iterator[Part]:
    """Never answer."""
    threading.Event().wait()
    yield b"{}", b""


def hoard(_body: bytes) -> Iterator[Part]:
    """Take more memory than the process may have."""
    yield b"{}", bytes(3 << 30)


def environment(_body: bytes) -> Iterator[Part]:
    """Return the names in the environment."""
    yield json.dumps(sorted(os.environ)).encode(), b""


if __name__ == "__main__":
    serve(
        {
            "echo": echo,
            "fail": fail,
            "die": die,
            "hang": hang,
            "hoard": hoard,
            "environment": environment,
        }
    )
