"""uvicorn, stopped in our order: the door closes last, when those who were inside are answered."""

import asyncio
import contextlib
import math
import signal
import socket
from collections.abc import Callable, Iterator

import structlog
import uvicorn
from fastapi import FastAPI

from modelyard.exiting import Exit

log = structlog.get_logger(__name__)

GRACE_S = 18.0
"""Seconds that requests in flight have after SIGTERM; then they are cut off."""
REFUSED_S = 1
"""Seconds that the last refusals have at least to get out once the door is closed."""
KEEP_ALIVE_S = 65
"""Longer than the usual 60 seconds of a proxy, so that the proxy closes first."""


class GatewayServer(uvicorn.Server):
    """A server that calls `on_stop` first when SIGTERM or SIGINT comes.

    A second signal ends the process at once, and what is still in flight with it.
    """

    def __init__(
        self, app: FastAPI, on_stop: Callable[[], None], process: Exit | None = None
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
            )
        )
        self._on_stop = on_stop
        self._process = process or Exit()

    def stop(self) -> None:
        """Answer those who wait, finish what is in flight, take nothing new, end `serve`."""
        if not self.should_exit:
            log.info("gateway.stopping")
        self.should_exit = True
        self._on_stop()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the door and end what is left, once the requests in flight are answered.

        uvicorn by itself closes it first. Then whoever comes while we still answer others is told
        nothing; like this it is the app that refuses, and says when to ask again. What the app has
        answered may not have reached a slow client yet: that has the rest of the time.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + GRACE_S
        in_flight = set(self.server_state.tasks)
        if in_flight:
            await asyncio.wait(in_flight, timeout=GRACE_S)
        left_s = math.ceil(until - loop.time())
        self.config.timeout_graceful_shutdown = max(REFUSED_S, left_s)
        await super().shutdown(sockets)

    def _signalled(self) -> None:
        if self.should_exit:
            self._process.now()
        self._process.begin()
        self.stop()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take signals in on the event loop, so that `stop` may wake tasks; exit code 0 then."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; raises `OSError`. Port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named, for asyncio switches Nagle's algorithm off only where it is: without
    # that every answer of two parts waits 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host, port))
        listener.listen(2_048)
    except OSError:
        listener.close()
        raise
    return listener
