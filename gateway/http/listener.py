"""Taking connections in: a loop of our own, which says when it runs out of file descriptors.

uvloop's own server takes connections for which it has no file descriptor and closes them at once,
without a line in the log (tried with 0.23). Here they wait in the backlog, and the log says why.
"""

import asyncio
import errno
import resource
import socket
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

PAUSE_S = 0.2
"""How long nothing is accepted after it failed; those who come wait in the backlog."""
OTHER_FILES = 200
"""File descriptors for everything but the clients' connections."""

_CLIENT_WENT = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.ECONNRESET})


class Listener:
    """Accepts on one listening socket until closed; what uvicorn expects of a server."""

    def __init__(self, listener: socket.socket, protocol: Callable[[], asyncio.Protocol]) -> None:
        self._listener = listener
        self._protocol = protocol
        self._failing = False
        self._closing = False
        self._may_be_cut_short = False
        listener.setblocking(False)
        self._task = asyncio.get_running_loop().create_task(self._accept_forever())

    def close(self) -> None:
        """Accept nothing more; a connection that is being made is made first.

        Cut short there, uvloop would close it and never tell the protocol that it is lost.
        """
        self._closing = True
        if self._may_be_cut_short:
            self._task.cancel()

    async def wait_closed(self) -> None:
        """Return once nothing is accepted any more, so that the socket may be closed."""
        await asyncio.wait([self._task])

    def check(self) -> None:
        """Raise what the loop failed of, if it has ended by itself."""
        if self._task.done() and not self._task.cancelled():
            self._task.result()

    async def _accept_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._closing:
            self._may_be_cut_short = True
            try:
                client, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                if error.errno in _CLIENT_WENT:
                    continue
                self._failed(error)
                await asyncio.sleep(PAUSE_S)
                continue
            self._may_be_cut_short = False
            self._works()
            try:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await loop.connect_accepted_socket(self._protocol, client)
            except OSError:
                client.close()  # the client has gone again

    def _failed(self, error: OSError) -> None:
        if not self._failing:
            log.error("accept.failed", reason=str(error))
        self._failing = True

    def _works(self) -> None:
        if self._failing:
            log.info("accept.works_again")
        self._failing = False


def connections_within_file_limit(wanted: int) -> int:
    """Return how many connections may be open, after asking for enough file descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    possible = max(soft - OTHER_FILES, soft // 2)
    log.warning("connections.limited_by_files", wanted=wanted, possible=possible, files=soft)
    return possible
