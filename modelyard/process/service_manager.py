"""Tells systemd, or whoever speaks its protocol, that this process is ready, lives, and stops.

Source: systemd's manual sd_notify(3), which documents the protocol for programs without its
library: one datagram of `NAME=VALUE` lines to the Unix socket in `NOTIFY_SOCKET`.
"""

import asyncio
import faulthandler
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

log = structlog.get_logger(__name__)


class ServiceManager:
    """The manager that started this process; without one all calls do nothing."""

    def __init__(self, address: str | None = None, *, watchdog_s: float | None = None) -> None:
        """`address` is the socket's path; an `@` at its beginning stands for an abstract one.

        The manager ends a process that it has not heard of for `watchdog_s` seconds.
        """
        self._address = address and (f"\0{address[1:]}" if address.startswith("@") else address)
        self._watchdog_s = watchdog_s
        self._failed = False
        self._timer: asyncio.TimerHandle | None = None

    def ready(self) -> None:
        """Say that the service does its work now; saying it again does no harm."""
        self._say("READY=1")

    def stopping(self) -> None:
        """Say that the process ends by itself soon."""
        self._say("STOPPING=1")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, say from the event loop that the process lives: a loop that is blocked can't.

        The manager then sends SIGABRT. What each thread did is written to stderr at that.
        """
        if self._address is None or self._watchdog_s is None:
            yield
            return
        faulthandler.enable()
        self._tick(asyncio.get_running_loop(), self._watchdog_s / 3)
        try:
            yield
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def _tick(self, loop: asyncio.AbstractEventLoop, interval_s: float) -> None:
        self._say("WATCHDOG=1")
        self._timer = loop.call_later(interval_s, self._tick, loop, interval_s)

    def _say(self, line: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as telling:
                telling.setblocking(False)
                telling.sendto(line.encode(), self._address)
        except OSError as error:
            if not self._failed:
                log.warning("service_manager.deaf", error=str(error))
            self._failed = True
        else:
            self._failed = False


NOBODY = ServiceManager()
"""For a process that nobody manages."""
