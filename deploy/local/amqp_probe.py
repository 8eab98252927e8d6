"""A small synchronous AMQP 0-9-1 client, enough to check whether a broker serves clients.

pamqp, a dependency of the project's AMQP client, encodes and decodes the frames.
"""

from __future__ import annotations

import socket
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlsplit

from pamqp import commands, frame, header
from pamqp.base import Frame
from pamqp.exceptions import UnmarshalingException

if TYPE_CHECKING:
    from collections.abc import Iterator

_TIMEOUT_S = 5.0
_CHANNEL = 1
_AMQP_PORT = 5672

Answer = TypeVar("Answer", bound=Frame)


@dataclass(frozen=True)
class QueueCounts:
    messages: int
    consumers: int


def broker_version(url: str, *, timeout_s: float = _TIMEOUT_S) -> str | None:
    """Log in, open a channel and close; return the broker's version, None if that fails."""
    try:
        with _session(url, timeout_s) as session:
            return session.version
    except (OSError, EOFError, UnmarshalingException):
        return None


def queue_counts(url: str, queue: str) -> QueueCounts | None:
    """Return the ready messages and consumers of a queue; None if the queue does not exist.

    Raises OSError or EOFError if the broker does not answer.
    """
    with _session(url) as session:
        session.send(commands.Queue.Declare(queue=queue, passive=True), _CHANNEL)
        answer = session.receive()
        if not isinstance(answer, commands.Queue.DeclareOk):
            return None
        return QueueCounts(answer.message_count or 0, answer.consumer_count or 0)


class _Session:
    def __init__(self, wire: socket.socket) -> None:
        self._wire = wire
        self._unread = b""
        self.version = ""

    def log_in(self, user: str, password: str, vhost: str) -> None:
        self._wire.sendall(frame.marshal(header.ProtocolHeader(), 0))
        start = self.expect(commands.Connection.Start)
        properties = start.server_properties or {}
        self.version = str(properties.get("version", "unknown version"))
        self.send(commands.Connection.StartOk(response=f"\0{user}\0{password}"))
        tune = self.expect(commands.Connection.Tune)
        self.send(commands.Connection.TuneOk(tune.channel_max, tune.frame_max, 0))
        self.send(commands.Connection.Open(vhost))
        self.expect(commands.Connection.OpenOk)
        self.send(commands.Channel.Open(), _CHANNEL)
        self.expect(commands.Channel.OpenOk)

    def log_out(self) -> None:
        self.send(commands.Connection.Close(200, "done", 0, 0))
        self.expect(commands.Connection.CloseOk)

    def send(self, value: Frame, channel: int = 0) -> None:
        self._wire.sendall(frame.marshal(value, channel))

    def expect(self, kind: type[Answer]) -> Answer:
        answer = self.receive()
        if not isinstance(answer, kind):
            message = f"the broker answered {answer.name} instead of {kind.name}"
            raise ConnectionError(message)
        return answer

    def receive(self) -> Frame:
        """Read the next method frame and skip heartbeats; raises EOFError at the end."""
        while True:
            try:
                length, _channel, value = frame.unmarshal(self._unread)
            except UnmarshalingException:
                received = self._wire.recv(65_536)
                if not received:
                    raise EOFError from None
                self._unread += received
                continue
            self._unread = self._unread[length:]
            if isinstance(value, Frame):
                return value


@contextmanager
def _session(url: str, timeout_s: float = _TIMEOUT_S) -> Iterator[_Session]:
    parts = urlsplit(url)
    address = (parts.hostname or "127.0.0.1", parts.port or _AMQP_PORT)
    with socket.create_connection(address, timeout_s) as wire:
        session = _Session(wire)
        user, password = unquote(parts.username or "guest"), unquote(parts.password or "guest")
        session.log_in(user, password, unquote(parts.path.removeprefix("/")) or "/")
        yield session
        session.log_out()
