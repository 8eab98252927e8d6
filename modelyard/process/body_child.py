"""The body process itself: it takes one body after the other from its standard input.

It holds nothing between two bodies and opens no connection. It ends when its input does, which is
when the service has ended, however that came.
"""

import gc
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any

from modelyard.process.body_frames import END, FAILED, PREFIX, frame

Part = tuple[bytes, bytes]
"""A header, which is JSON, and the bytes that belong to it."""
Task = Callable[..., Iterable[Part]]
"""Called with the body and with the named arguments that the service gave."""

MAX_MEMORY_BYTES = 2 << 30
"""Of address space. The worst body that the limits of JSON allow takes about a fifth of it."""
NICENESS = 5
"""The service itself goes first where they share a CPU: it answers everyone else."""


def serve(tasks: Mapping[str, Task]) -> None:
    """Carry out tasks until the input ends."""
    # A terminal sends Ctrl-C, and systemd SIGTERM, to this process too: the service decides when.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = MAX_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(hard, MAX_MEMORY_BYTES)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    # JSON holds no cycles, and looking for them takes more time than parsing does.
    gc.disable()
    # Whoever prints does not talk into the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    answers.write(END)  # it reads from here on: who waits for it knows that it was started
    answers.flush()
    while asked := _read(sys.stdin.buffer):
        header, body = asked
        for part in _answer(tasks, json.loads(header), body):
            answers.writelines(frame(*part))
        answers.write(END)
        answers.flush()
        del asked, header, body
        gc.collect(0)


def _answer(tasks: Mapping[str, Task], asked: dict[str, Any], body: bytes) -> Iterable[Part]:
    try:
        yield from tasks[asked["task"]](body, **asked["given"])
    except MemoryError:
        yield json.dumps({FAILED: "it takes too much memory"}).encode(), b""
    except Exception as error:  # noqa: BLE001 - the boundary of one task; the service raises it
        yield json.dumps({FAILED: repr(error)[:500]}).encode(), b""


def _read(source: IO[bytes]) -> tuple[bytes, bytes] | None:
    prefix = source.read(PREFIX.size)
    if len(prefix) < PREFIX.size:
        return None
    header_size, blob_size = PREFIX.unpack(prefix)
    header, blob = source.read(header_size), source.read(blob_size)
    return (header, blob) if len(blob) == blob_size else None
