"""Turns signals that end a command into exceptions, so that the command stops its processes."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_ENDING = (signal.SIGTERM, signal.SIGHUP)
_ALL = (*_ENDING, signal.SIGINT)


@contextmanager
def raised() -> Iterator[None]:
    """Raise SystemExit on SIGTERM and SIGHUP, as Python raises KeyboardInterrupt on SIGINT."""
    with _handled(_ENDING, _leave):
        yield


@contextmanager
def ignored() -> Iterator[None]:
    """Ignore further signals, so that a second Ctrl-C does not interrupt the cleanup."""
    with _handled(_ALL, signal.SIG_IGN):
        yield


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


@contextmanager
def _handled(numbers: tuple[signal.Signals, ...], handler: signal._HANDLER) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set signal handlers
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
