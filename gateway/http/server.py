"""uvicorn, stopped in our order: the door closes last, when those who were inside are answered."""

import asyncio
import contextlib
import math
import socket
from collections.abc import Callable, Iterator
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI

from gateway.http.connections import ClientConnection, ClientConnections, ConnectionLimits
from gateway.http.listener import Listener
from modelyard.process.shutdown import ProcessExit, stop_on_signals

log = structlog.get_logger(__name__)

GRACE_S = 18.0
"""Seconds that requests in flight have after SIGTERM; then they are cut off."""
REFUSED_S = 1
"""Seconds that the last refusals have at least to get out once the door is closed."""
SWEEP_EVERY_TICKS = 5
"""uvicorn ticks ten times a second."""


class GatewayServer(uvicorn.Server):
    """A server that calls `on_stop` first when SIGTERM or SIGINT comes.

    A second signal ends the process at once, and what is still in flight with it.
    """

    def __init__(
        self,
        app: FastAPI,
        on_stop: Callable[[], None],
        process: ProcessExit | None = None,
        limits: ConnectionLimits | None = None,
    ) -> None:
        self.connections = ClientConnections(limits or ConnectionLimits())
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                log_level="error",  # a request that is not HTTP is no reason for a line
                access_log=False,
                server_header=False,
                proxy_headers=False,  # anyone could claim any address
                http="h11",
                ws="none",
                timeout_keep_alive=self.connections.limits.idle_s,
            )
        )
        self.connections.state = self.server_state
        self._accepting: list[Listener] = []
        self._on_stop = on_stop
        self._process = process or ProcessExit()

    def stop(self) -> None:
        """Answer those who wait, finish what is in flight, take nothing new, end `serve`."""
        if not self.should_exit:
            log.info("gateway.stopping")
        self.should_exit = True
        self._on_stop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept on the sockets, by a loop of ours."""
        if not self.config.loaded:
            self.config.load()

        def connection() -> ClientConnection:
            return ClientConnection(self.config, self.server_state, self.connections)

        self._accepting = [Listener(one, connection) for one in sockets or ()]
        self.servers: list[Any] = list(self._accepting)
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        """Do what is due from time to time; True if it is time to stop."""
        if counter % SWEEP_EVERY_TICKS == 0:
            self.connections.sweep()
        for one in self._accepting:
            one.check()
        return await super().on_tick(counter)

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
        for accepting in self._accepting:
            accepting.close()
            await accepting.wait_closed()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take signals in on the event loop, so that `stop` may wake tasks; exit code 0 then."""
        with stop_on_signals(self.stop, self._process):
            yield


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
