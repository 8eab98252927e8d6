"""The uvicorn server with another shutdown order: it stops listening last.

Requests in flight are answered first. New requests are refused by the app meanwhile.
"""

import asyncio
import contextlib
import math
import socket
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI

from gateway.http.connections import ClientConnection, ClientConnections, ConnectionLimits
from gateway.http.listener import Listener
from modelyard.process.shutdown import ProcessExit, stop_on_signals

log = structlog.get_logger(__name__)

GRACE_S = 18.0
"""Seconds that requests in flight have after SIGTERM; then they are aborted."""
REFUSED_S = 1
"""Least seconds for the last refusals to reach their clients once the server stops listening."""
SWEEP_EVERY_TICKS = 5
"""uvicorn ticks ten times a second."""


class GatewayServer(uvicorn.Server):
    """A server that first calls `on_stop` when it gets SIGTERM or SIGINT.

    A second signal ends the process at once, with all requests in flight.
    """

    def __init__(
        self,
        app: FastAPI,
        on_stop: Callable[[], None],
        process: ProcessExit | None = None,
        limits: ConnectionLimits | None = None,
        on_refused: Callable[[HTTPStatus, str], None] = lambda _status, _address: None,
    ) -> None:
        """`on_refused` is called with a status and an address for what no route answers."""
        self.connections = ClientConnections(limits or ConnectionLimits(), on_refused=on_refused)
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                log_level="error",  # no log line for a request that is not HTTP
                access_log=False,
                server_header=False,
                proxy_headers=False,  # any client could claim any address with them
                http="h11",
                ws="none",
                timeout_keep_alive=self.connections.limits.idle_s,
            )
        )
        self.connections.state = self.server_state
        self._listeners: list[Listener] = []
        self._on_stop = on_stop
        self._process = process or ProcessExit()

    def stop(self) -> None:
        """Answer waiting requests, finish those in flight, refuse new ones, end `serve`."""
        if not self.should_exit:
            log.info("gateway.stopping")
        self.should_exit = True
        self._on_stop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept on the sockets with `Listener` instead of uvicorn's own servers."""
        if not self.config.loaded:
            self.config.load()

        def connection() -> ClientConnection:
            return ClientConnection(self.config, self.server_state, self.connections)

        self._listeners = [Listener(one, connection) for one in sockets or ()]
        self.servers: list[Any] = list(self._listeners)
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        """Sweep connections and check the listeners; return true if the server has to stop."""
        if counter % SWEEP_EVERY_TICKS == 0:
            self.connections.sweep()
        for one in self._listeners:
            one.check()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for the requests in flight, then stop listening and close what is left.

        uvicorn itself would stop listening first, so a new client would only see a refused
        connection while others are still answered. In this order the app refuses it with a 503 and
        `Retry-After`. An answer may not have reached a slow client yet: that client has the rest of
        `GRACE_S` to read it.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + GRACE_S
        in_flight = set(self.server_state.tasks)
        if in_flight:
            await asyncio.wait(in_flight, timeout=GRACE_S)
        remaining_s = math.ceil(until - loop.time())
        self.config.timeout_graceful_shutdown = max(REFUSED_S, remaining_s)
        for listener in self._listeners:
            listener.close()
            await listener.wait_closed()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take signals in on the event loop, so that `stop` may wake tasks; exit code 0 then."""
        with stop_on_signals(self.stop, self._process):
            yield


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Return a listening socket; raises `OSError`. Port 0 takes a free one.

    With `shared` other processes of the same user may listen there too, if they also say so.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle's algorithm off only if the protocol is named. With the algorithm on,
    # every answer of two parts waits 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host, port))
        listener.listen(2_048)
    except OSError:
        listener.close()
        raise
    return listener
