"""Connections to model servers: opened, kept open between inferences, and closed soon when idle.

A server may close an idle connection at the very moment of its next use. An inference is never sent
twice, so it matters whether the server has read the request. TCP proves it: a FIN acknowledges
everything that came before it. So if a connection ends without an answer, and the peer has
acknowledged nothing of the request, the peer had closed it before the request came
(`Connection.unread_by_peer`), and the request may be sent again. Without this proof the request has
failed. To make that rare, a connection stays idle for `IDLE_S` at most, and a server that closes
idle connections sooner than that gets a new connection for each request.
"""

import asyncio
import socket
import struct
from collections import OrderedDict, deque

from worker.engine.protocol import Address

IDLE_S = 1.0
"""Seconds after which an idle connection is closed: earlier than any common server closes it. A
server with one thread that serves one connection to its end is free again after this time."""
DISTRUST_S = 60.0
"""Seconds for which no connection is kept to a server that closed an idle one."""
MAX_DISTRUSTED = 1_000
"""Servers of which it is remembered that they close idle connections."""

_TCP_INFO_BYTES = 128
_BYTES_ACKED_AT = 120
"""`tcpi_bytes_acked` in Linux's `struct tcp_info` (linux/tcp.h), since 4.1."""


class NoExchangeError(Exception):
    """No complete answer came: no connection, or it broke, or the answer was not valid HTTP."""


class RefusedError(NoExchangeError):
    """Nothing listens at the address."""


class BrokenConnectionError(NoExchangeError):
    """The connection broke, or ended, before anything of an answer came."""


class Connection:
    """One connection to a model server."""

    def __init__(self, opened: socket.socket, address: Address) -> None:
        self.socket = opened
        self.address = address
        self.reused = False
        """True if it has served an earlier request."""
        self._acked_before: int | None = None

    @property
    def closed(self) -> bool:
        return self.socket.fileno() < 0

    def close(self) -> None:
        self.socket.close()

    def begin_request(self) -> None:
        """Remember what the peer has acknowledged so far, for `unread_by_peer`."""
        self._acked_before = _bytes_acked(self.socket) if self.reused else None

    def unread_by_peer(self) -> bool:
        """Return whether it is proved that the peer has read nothing of the present request.

        Ask this after the connection has ended (a FIN, not a reset) before any byte of an answer.
        """
        return self._acked_before is not None and _bytes_acked(self.socket) == self._acked_before

    def is_open_and_silent(self) -> bool:
        """Return whether the server has neither closed an idle connection nor sent anything."""
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False  # bytes that nobody asked for, or the end


class ConnectionPool:
    """The idle connections to all model servers of one worker."""

    def __init__(self) -> None:
        self._idle: dict[Address, deque[tuple[float, Connection]]] = {}
        self._distrusted: OrderedDict[Address, float] = OrderedDict()
        """Servers that closed an idle connection, and until when none is kept to them."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> int:
        """Number of idle connections."""
        return sum(len(those) for those in self._idle.values())

    def close(self) -> None:
        """Close all idle connections."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for those in self._idle.values():
            for _, connection in those:
                connection.close()
        self._idle.clear()

    async def take(self, address: Address) -> Connection:
        """Return an idle connection to this address, or a new one; raises `NoExchangeError`."""
        those = self._idle.get(address)
        while those:
            _, connection = those.pop()
            if not those:
                del self._idle[address]
            if connection.is_open_and_silent():
                return connection
            connection.close()
            self.distrust(address)
        return await connect(address)

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose exchange is complete for the next request to its address."""
        now = asyncio.get_running_loop().time()
        if self._distrusted.get(connection.address, 0.0) > now:
            connection.close()
            return
        connection.reused = True
        self._idle.setdefault(connection.address, deque()).append((now, connection))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(IDLE_S, self._close_old)

    def distrust(self, address: Address) -> None:
        """Keep no connection to this server for a while: it closed an idle one early."""
        until = asyncio.get_running_loop().time() + DISTRUST_S
        self._distrusted[address] = until
        self._distrusted.move_to_end(address)
        while len(self._distrusted) > MAX_DISTRUSTED:
            self._distrusted.popitem(last=False)

    def _close_old(self) -> None:
        """Close the connections that have been idle for `IDLE_S`."""
        loop = asyncio.get_running_loop()
        oldest = loop.time() - IDLE_S
        for address, those in tuple(self._idle.items()):
            while those and those[0][0] <= oldest:
                those.popleft()[1].close()
            if not those:
                del self._idle[address]
        first = min((those[0][0] for those in self._idle.values()), default=None)
        self._timer = None if first is None else loop.call_at(first + IDLE_S, self._close_old)


async def connect(address: Address) -> Connection:
    """Open a connection; raises `RefusedError`, and `NoExchangeError` for other failures."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        opened = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise NoExchangeError(reason_of(error)) from error
    try:
        opened.setblocking(False)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(opened, (address.host, address.port))
    except ConnectionRefusedError as error:
        opened.close()
        raise RefusedError("The connection was refused.") from error
    except OSError as error:
        opened.close()
        raise NoExchangeError(f"No connection ({reason_of(error)}).") from error
    except BaseException:
        opened.close()
        raise
    return Connection(opened, address)


def reason_of(error: OSError) -> str:
    """Return the operating system's words for an error."""
    return error.strerror or type(error).__name__


def _bytes_acked(opened: socket.socket) -> int | None:
    """Return how many bytes the peer has acknowledged; None where the system does not tell."""
    option = getattr(socket, "TCP_INFO", None)
    if option is None:
        return None
    try:
        info = opened.getsockopt(socket.IPPROTO_TCP, option, _TCP_INFO_BYTES)
    except OSError:
        return None
    if len(info) < _TCP_INFO_BYTES:
        return None
    [acked] = struct.unpack_from("=Q", info, _BYTES_ACKED_AT)
    return int(acked)
