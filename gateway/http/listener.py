"""The accept loop: it logs when the process runs out of file descriptors.

uvloop's own server accepts connections for which it has no file descriptor and closes them at once,
without a log line (seen with 0.23). Here they wait in the backlog, and the log says why.
"""

import asyncio
import errno
import resource
import socket
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

PAUSE_S = 0.2
"""Pause after a failed accept; new connections wait in the backlog meanwhile."""
OTHER_FILES = 200
"""File descriptors for everything but the clients' connections."""

_CLIENT_LEFT = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.ECONNRESET})


class Listener:
    """Accepts on one listening socket until closed; implements what uvicorn needs of a server."""

    def __init__(self, listener: socket.socket, protocol: Callable[[], asyncio.Protocol]) -> None:
        self._listener = listener
        self._protocol = protocol
        self._failing = False
        self._closing = False
        self._may_cancel = False
        listener.setblocking(False)
        self._task = asyncio.get_running_loop().create_task(self._accept_forever())

    def close(self) -> None:
        """Stop accepting, after a connection that is just being set up.

        If that were cancelled, uvloop would close the connection without calling the protocol's
        `connection_lost`.
        """
        self._closing = True
        if self._may_cancel:
            self._task.cancel()

    async def wait_closed(self) -> None:
        """Return once the loop has stopped, so that the socket may be closed."""
        await asyncio.wait([self._task])

    def check(self) -> None:
        """Raise the loop's error, if it has failed."""
        if self._task.done() and not self._task.cancelled():
            self._task.result()

    async def _accept_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._closing:
            self._may_cancel = True
            try:
                client, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                if error.errno in _CLIENT_LEFT:
                    continue
                self._failed(error)
                await asyncio.sleep(PAUSE_S)
                continue
            self._may_cancel = False
            self._succeeded()
            try:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await loop.connect_accepted_socket(self._protocol, client)
            except OSError:
                client.close()  # the client has disconnected already

    def _failed(self, error: OSError) -> None:
        if not self._failing:
            log.error("accept.failed", reason=str(error))
        self._failing = True

    def _succeeded(self) -> None:
        if self._failing:
            log.info("accept.works_again")
        self._failing = False


def connections_within_file_limit(wanted: int) -> int:
    """Raise the limit of file descriptors; return how many connections may be open with it."""
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
