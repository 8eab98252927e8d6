"""Ends the process in time, even if threads hang.

A call of MongoDB's driver that waits for a dead server blocks a thread that nothing can stop.
Python waits for its threads before it exits; without this module it could wait for ever.
"""

import logging
import os
import threading
from typing import TypeVar

import structlog

log = structlog.get_logger(__name__)

EXIT_S = 24.0
"""Seconds from the first signal until the process has ended."""
LEFT_OVERS_S = 2.0
"""Seconds that threads have to end after everything is answered and closed."""
CUT_OFF = 1


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


def _after(seconds: float, code: int) -> None:
    timer = threading.Timer(seconds, _end, [code])
    timer.daemon = True
    timer.start()


def _end(code: int) -> None:
    logging.shutdown()
    os._exit(code)
