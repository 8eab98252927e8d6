"""Ends the process in time, even if threads hang.

A call of MongoDB's driver that waits for a dead server blocks a thread that nothing can stop.
Python waits for its threads before it exits; without this module it could wait for ever.
"""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import structlog

log = structlog.get_logger(__name__)

EXIT_S = 24.0
"""Seconds from the first signal until the process has ended."""
LEFT_OVERS_S = 2.0
"""Seconds that threads have to end after everything is answered and closed."""
CUT_OFF = 1
"""Exit code of a process that was cut off: by a second signal, or `EXIT_S` after the first."""


E = TypeVar("E", bound=BaseException)


def find_error(error: BaseException, kind: type[E]) -> E | None:
    """Return the first error of a kind, also from within exception groups, which tasks raise."""
    if isinstance(error, kind):
        return error
    if isinstance(error, BaseExceptionGroup):
        found = (find_error(inner, kind) for inner in error.exceptions)
        return next((one for one in found if one is not None), None)
    return None


class ProcessExit:
    """Ends a process that has been asked to stop."""

    def begin(self) -> None:
        """Give the process `EXIT_S` seconds to end by itself; then it ends with exit code 1."""
        _after(EXIT_S, CUT_OFF)

    def now(self) -> None:
        """End the process with exit code 1."""
        log.warning("process.cut_off")
        _end(CUT_OFF)

    def soon(self, code: int) -> None:
        """End the process in `LEFT_OVERS_S` seconds, even if threads hang: all work is done."""
        _after(LEFT_OVERS_S, code)


@contextmanager
def stop_on_signals(stop: Callable[[], object], process: ProcessExit) -> Iterator[None]:
    """Inside, call `stop` at the first SIGTERM or SIGINT, on the running event loop.

    A second signal ends the process at once with `CUT_OFF`, and so does time, `EXIT_S` seconds
    after the first. This holds for every process of Modelyard.
    """
    signalled = False

    def on_signal() -> None:
        nonlocal signalled
        if signalled:
            process.now()
        signalled = True
        process.begin()
        stop()

    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _after(seconds: float, code: int) -> None:
    timer = threading.Timer(seconds, _end, [code])
    timer.daemon = True
    timer.start()


def _end(code: int) -> None:
    logging.shutdown()
    os._exit(code)
