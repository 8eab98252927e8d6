"""Bounds on client connections: how many may be open, and how long each may wait.

uvicorn bounds only the time between two requests. Here every wait for a client has a limit: for
its first byte, for the rest of a header, and for it to read on in an answer. `sweep`, called twice
a second, checks what each connection waits for; that is simpler than a timer for every wait, and
cheap for thousands of connections.

A client that has been refused may go on sending what it has begun. That is read and dropped, within
bounds in bytes and in time, so that the client sees the answer (see `lingering`).

If too many connections are open, idle ones are closed for new ones, beginning with the address that
has the most. A client that has stopped reading its answer loses its connection too; one that still
reads does not. A new connection is refused (503) only if all the others are being served.
"""

import asyncio
import math
import select
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus

import h11
import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from gateway.http.lingering import LingeringTransport, lingering
from gateway.http.strict_http import StrictConnection
from modelyard.contract import answers
from modelyard.contract.answers import PROBLEM_MEDIA_TYPE
from modelyard.contract.errors import SENTENCES, ErrorCode

log = structlog.get_logger(__name__)

LOG_EVERY_S = 10.0
"""Least seconds between two log lines about refused or closed connections."""
STALLED_S = 5.0
"""Seconds after which a client that reads nothing of its answer may lose its connection."""
REST_BYTES = 64 << 20
"""Most bytes that are dropped of a request that has been answered; then the connection is cut."""
CLOSED_SHARE = 20
"""If too many connections are open, one in so many is closed at once."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How many connections may be open, and how many seconds each may wait."""

    max_open: int = 1_000
    header_s: float = 10.0
    idle_s: int = 65
    """Longer than the usual 60 seconds of a proxy, so that the proxy closes first."""
    write_s: float = 30.0


class Waiting(StrEnum):
    """What an open connection waits for."""

    NEXT_REQUEST = "next_request"
    HEADER = "header"
    """The first byte or the rest of a request's header, or the rest of a refused body."""
    REST = "rest"
    """What the client still sends after the last answer, and its end of the connection."""
    READER = "reader"
    """The client, which has to read what was written."""
    ANSWER = "answer"
    """The app, which has its own deadlines."""


class ClientConnection(H11Protocol):
    """uvicorn's connection, with strict parsing and clean refusals; see `ClientConnections`."""

    conn: StrictConnection
    transport: LingeringTransport

    def __init__(
        self, config: uvicorn.Config, server_state: ServerState, all_: "ClientConnections"
    ) -> None:
        super().__init__(config, server_state, {})
        self.conn = StrictConnection()
        self.waiting = Waiting.HEADER
        self.since = all_.now()
        self.read_on_at = all_.now()
        """When the client had last read all that was written, or enough for more to be written."""
        self.took_at = all_.now()
        """When the client had last read anything of what was written."""
        self._all = all_
        self._unsent = 0
        self._dropped = 0
        self._seen: object = None

    @property
    def address(self) -> str:
        """The client's address."""
        return self.client[0] if self.client else "unknown"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept a new connection, if there is room for it or idle ones can be closed."""
        super().connection_made(lingering(transport, lambda: self._body_is_coming))
        if not self._all.make_room(self):
            self.refuse(
                HTTPStatus.SERVICE_UNAVAILABLE,
                ErrorCode.UNAVAILABLE,
                "Too many connections are open.",
            )

    def data_received(self, data: bytes) -> None:
        """Handle bytes of the client; those that follow a refusal are dropped."""
        answered = self._body_is_coming and self.conn.our_state is h11.DONE
        self._dropped = self._dropped + len(data) if answered or self.transport.lingers else 0
        if self._dropped > REST_BYTES:
            self.transport.abort()
        elif not self.transport.is_closing():
            super().data_received(data)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's signature
        """Refuse a request that is not HTTP, or that another server might parse differently."""
        detail = self.conn.refused_because or "This is not a valid HTTP/1.1 request."
        self.refuse(self.conn.refused_with, ErrorCode.INVALID_REQUEST, detail)

    def refuse(self, status: HTTPStatus, code: ErrorCode, detail: str) -> None:
        """Answer without the app and close; if an answer has begun, only close."""
        cycle: RequestResponseCycle | None = self.cycle
        self._all.on_refused(status, self.address)
        if cycle is None or cycle.response_complete or not cycle.response_started:
            self.transport.write(_problem(status, code, detail))
        if cycle is not None and not cycle.response_complete:
            # To the app this looks like a disconnect of the client: uvicorn drops what it sends.
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.linger()

    def shutdown(self) -> None:
        """Close as soon as the request in flight is answered; nobody's rest is waited for."""
        if not self.transport.is_closing():
            super().shutdown()
        if self.transport.lingers:
            self.transport.abort()

    @property
    def _body_is_coming(self) -> bool:
        return self.conn.their_state is h11.SEND_BODY

    def resume_writing(self) -> None:
        """Continue to write, because the client has read."""
        self.read_on_at = self.took_at = self._all.now()
        super().resume_writing()

    def update(self) -> None:
        """Update what the connection waits for, and since when."""
        now = self._all.now()
        unsent = self.transport.get_write_buffer_size()
        if not unsent:
            self.read_on_at = now
        if not unsent or unsent < self._unsent:
            self.took_at = now
        self._unsent = unsent
        waiting = self._waits_for()
        if (waiting, self.cycle) != (self.waiting, self._seen):
            self.waiting, self._seen, self.since = waiting, self.cycle, now

    @property
    def may_be_closed(self) -> bool:
        """True if the client is neither waiting for an answer nor reading one."""
        if self.waiting is Waiting.READER:
            return self._all.now() - self.took_at > STALLED_S
        return self.waiting is not Waiting.ANSWER

    def _waits_for(self) -> Waiting:
        if self.transport.lingers:
            return Waiting.REST
        if self.transport.get_write_buffer_size() or self.transport.is_closing():
            return Waiting.READER
        if self.cycle is None:
            return Waiting.HEADER
        if not self.cycle.response_complete:
            return Waiting.ANSWER
        if self._body_is_coming or self.conn.has_part_of_header:
            return Waiting.HEADER
        return Waiting.NEXT_REQUEST


@dataclass
class ClientConnections:
    """All client connections of a server."""

    limits: ConnectionLimits = field(default_factory=ConnectionLimits)
    now: Callable[[], float] = time.monotonic
    state: ServerState = field(default_factory=ServerState)
    on_refused: Callable[[HTTPStatus, str], None] = lambda _status, _address: None
    """Called with the status and the client's address when a connection refuses a request."""
    _refused: int = 0
    _closed: int = 0
    _logged_at: float = 0.0

    def of(self) -> list[ClientConnection]:
        """Return the open connections."""
        return [one for one in self.state.connections if isinstance(one, ClientConnection)]

    def sweep(self) -> None:
        """Close the connections that have waited for too long."""
        now = self.now()
        for one in self.of():
            one.update()
            waited = now - (one.read_on_at if one.waiting is Waiting.READER else one.since)
            if waited <= self._most_s(one.waiting):
                continue
            if one.waiting is Waiting.HEADER:
                self._close_late(one)
            else:
                self._abort(one)
        self._abort_reset()
        self._log_too_many()

    def make_room(self, new: ClientConnection) -> bool:
        """Close idle connections if too many are open; return false if none could be closed."""
        if len(self.state.connections) <= self.limits.max_open:
            return True
        others = [one for one in self.of() if one is not new]
        for one in others:
            one.update()
        of_address = Counter(one.address for one in others)
        closable = sorted(
            (one for one in others if one.may_be_closed),
            key=lambda one: (one.waiting is Waiting.READER, -of_address[one.address], one.since),
        )
        for one in closable[: max(1, self.limits.max_open // CLOSED_SHARE)]:
            self._closed += 1
            self._abort(one)
        if not closable:
            self._refused += 1
        return bool(closable)

    def _most_s(self, waiting: Waiting) -> float:
        """Return how long a connection may wait for this; other waits are bounded elsewhere."""
        if waiting is Waiting.READER:
            return self.limits.write_s
        return self.limits.header_s if waiting in {Waiting.HEADER, Waiting.REST} else math.inf

    def _close_late(self, one: ClientConnection) -> None:
        """Close a connection whose header is late: with 408 if part of it came, else silently."""
        if one.conn.has_part_of_header:
            one.refuse(
                HTTPStatus.REQUEST_TIMEOUT,
                ErrorCode.INVALID_REQUEST,
                f"The header did not arrive within {self.limits.header_s:g} s.",
            )
        else:
            one.transport.close()

    def _abort_reset(self) -> None:
        """Abort requests whose client has reset the connection.

        uvicorn notices a reset only while it reads, and it stops reading once the client has sent
        its next request.
        """
        answering = {
            one.transport.get_extra_info("socket").fileno(): one
            for one in self.of()
            if one.waiting is Waiting.ANSWER
        }
        poll = select.poll()
        for number in answering:
            poll.register(number, 0)  # poll always reports errors
        for number, _ in poll.poll(0):
            self._abort(answering[number])

    def _abort(self, one: ClientConnection) -> None:
        one.transport.abort()
        self.state.connections.discard(one)

    def _log_too_many(self) -> None:
        if not (self._refused or self._closed) or self.now() - self._logged_at < LOG_EVERY_S:
            return
        log.warning(
            "connections.too_many",
            open=len(self.state.connections),
            most=self.limits.max_open,
            gave_way=self._closed,
            refused=self._refused,
        )
        self._refused = self._closed = 0
        self._logged_at = self.now()


def _problem(status: HTTPStatus, code: ErrorCode, detail: str) -> bytes:
    """Return the bytes of an HTTP/1.1 answer with a problem document."""
    request_id = uuid.uuid4().hex
    problem = answers.problem(code, SENTENCES[code], status, detail).model_copy(
        update={"request_id": request_id}
    )
    body = problem.model_dump_json(exclude_none=True, exclude={"errors"}).encode()
    headers = {
        "Content-Type": PROBLEM_MEDIA_TYPE,
        "Content-Length": str(len(body)),
        "X-Request-Id": request_id,
        "Connection": "close",
    }
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = "1"
    lines = [f"HTTP/1.1 {status.value} {status.phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body
