"""The main loop of a body process: it reads one body after the other from its standard input.

The process keeps nothing between two bodies and opens no connection. It ends when its input does,
which happens whenever the service ends, even by a crash.
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
"""Limit of the address space. The worst body that the JSON limits allow needs about a fifth."""
NICENESS = 5
"""Gives the service precedence where both share a CPU, because it serves all other requests."""


def serve(tasks: Mapping[str, Task]) -> None:
    """Carry out tasks until the input ends."""
    # A terminal sends SIGINT, and systemd SIGTERM, to this process too. It ignores both, because
    # the service decides when it ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = MAX_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(hard, MAX_MEMORY_BYTES)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    # Parsed JSON has no reference cycles, and searching for them takes longer than parsing.
    gc.disable()
    # Output of `print` goes to stderr, so that it can't mix with the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    answers.write(END)  # tells the service that this process has started
    answers.flush()
    while request := _read(sys.stdin.buffer):
        header, body = request
        for part in _answer(tasks, json.loads(header), body):
            answers.writelines(frame(*part))
        answers.write(END)
        answers.flush()
        del request, header, body
        gc.collect(0)


def _answer(tasks: Mapping[str, Task], request: dict[str, Any], body: bytes) -> Iterable[Part]:
    try:
        yield from tasks[request["task"]](body, **request["given"])
    except MemoryError:
        yield json.dumps({FAILED: "it needs too much memory"}).encode(), b""
    except Exception as error:  # noqa: BLE001 - the boundary of one task; the service raises it
        yield json.dumps({FAILED: repr(error)[:500]}).encode(), b""


def _read(source: IO[bytes]) -> tuple[bytes, bytes] | None:
    prefix = source.read(PREFIX.size)
    if len(prefix) < PREFIX.size:
        return None
    header_size, blob_size = PREFIX.unpack(prefix)
    header, blob = source.read(header_size), source.read(blob_size)
    return (header, blob) if len(blob) == blob_size else None
