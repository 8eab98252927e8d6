"""Open connections: how many there may be, and for how long each may wait for what.

uvicorn bounds the time between two requests only. Here every wait for a client ends: for its
first byte, for the rest of a header, for its reading on in an answer. `sweep`, called twice a
second, looks at what each connection waits for; that is simpler than a timer for every wait, and
cheap for thousands of them.

When there are too many, idle ones give way to new ones, those of the address with the most
connections first. So does a client that has stopped reading its answer, but none that reads. Only
if all of them are being served is a new one refused, with 503.
"""

import asyncio
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

from gateway.http.strict_http import StrictConnection
from modelyard.contract import answers
from modelyard.contract.answers import PROBLEM_MEDIA_TYPE
from modelyard.contract.errors import SENTENCES, ErrorCode

log = structlog.get_logger(__name__)

TELL_EVERY_S = 10.0
"""How often the log says that connections are refused or give way."""
STALLED_S = 5.0
"""A client that took nothing of its answer for so long may give way to a new one."""
ROOM = 20
"""When there are too many, one of so many of all gives way at once."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How many connections may be open, and for how many seconds each may wait for what."""

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
    READER = "reader"
    """The client, to read what was written."""
    ANSWER = "answer"
    """The app, which has deadlines of its own."""


class ClientConnection(H11Protocol):
    """uvicorn's connection, read strictly, refused cleanly and known to `ClientConnections`."""

    conn: StrictConnection

    def __init__(
        self, config: uvicorn.Config, server_state: ServerState, all_: "ClientConnections"
    ) -> None:
        super().__init__(config, server_state, {})
        self.conn = StrictConnection()
        self.waiting = Waiting.HEADER
        self.since = all_.now()
        self.read_on_at = all_.now()
        """When the client had read all, or enough for more to be written."""
        self.took_at = all_.now()
        """When the client had taken anything of what was written."""
        self._all = all_
        self._unsent = 0
        self._seen: object = None

    @property
    def address(self) -> str:
        """Who is at the other end."""
        return self.client[0] if self.client else "unknown"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a new connection, if there is room for it or some can be made."""
        super().connection_made(transport)  # type: ignore[arg-type]
        if not self._all.make_room(self):
            self.refuse(
                HTTPStatus.SERVICE_UNAVAILABLE,
                ErrorCode.UNAVAILABLE,
                "Too many connections are open.",
            )

    def data_received(self, data: bytes) -> None:
        """Take bytes of a client; those behind a refusal are of no interest."""
        if not self.transport.is_closing():
            super().data_received(data)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's own words
        """Refuse what is not HTTP, or not such that all would read it alike."""
        detail = "This is not a request of HTTP/1.1 that every server would read alike."
        self.refuse(self.conn.refused_with, ErrorCode.INVALID_REQUEST, detail)

    def refuse(self, status: HTTPStatus, code: ErrorCode, detail: str) -> None:
        """Answer without the app and close; in the middle of an answer only close."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            self.transport.write(_problem(status, code, detail))
        if cycle is not None and not cycle.response_complete:
            # The app learns it as the client's hanging up: nothing that it sends goes out.
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()

    def shutdown(self) -> None:
        """Close once what is in flight is answered."""
        if not self.transport.is_closing():
            super().shutdown()

    def resume_writing(self) -> None:
        """Write on: the client has read."""
        self.read_on_at = self.took_at = self._all.now()
        super().resume_writing()

    def look(self) -> None:
        """Note what the connection waits for by now, and since when."""
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
    def may_give_way(self) -> bool:
        """True if nobody loses an answer that it is waiting for or reading."""
        if self.waiting is Waiting.READER:
            return self._all.now() - self.took_at > STALLED_S
        return self.waiting is not Waiting.ANSWER

    def _waits_for(self) -> Waiting:
        if self.transport.get_write_buffer_size() or self.transport.is_closing():
            return Waiting.READER
        if self.cycle is None:
            return Waiting.HEADER
        if not self.cycle.response_complete:
            return Waiting.ANSWER
        if self.conn.their_state is h11.SEND_BODY or self.conn.has_part_of_header:
            return Waiting.HEADER
        return Waiting.NEXT_REQUEST


@dataclass
class ClientConnections:
    """All connections of a server."""

    limits: ConnectionLimits = field(default_factory=ConnectionLimits)
    now: Callable[[], float] = time.monotonic
    state: ServerState = field(default_factory=ServerState)
    _refused: int = 0
    _gave_way: int = 0
    _told_at: float = 0.0

    def of(self) -> list[ClientConnection]:
        """Return those that are open."""
        return [one for one in self.state.connections if isinstance(one, ClientConnection)]

    def sweep(self) -> None:
        """Close the connections that have waited for too long."""
        now = self.now()
        for one in self.of():
            one.look()
            if one.waiting is Waiting.READER and now - one.read_on_at > self.limits.write_s:
                self._cut(one)
            elif one.waiting is Waiting.HEADER and now - one.since > self.limits.header_s:
                self._close_late(one)
        self._end_vanished()
        self._tell()

    def make_room(self, new: ClientConnection) -> bool:
        """Let idle connections give way to a new one, if there are too many; False: none did."""
        if len(self.state.connections) <= self.limits.max_open:
            return True
        others = [one for one in self.of() if one is not new]
        for one in others:
            one.look()
        of_address = Counter(one.address for one in others)
        spare = sorted(
            (one for one in others if one.may_give_way),
            key=lambda one: (one.waiting is Waiting.READER, -of_address[one.address], one.since),
        )
        for one in spare[: max(1, self.limits.max_open // ROOM)]:
            self._gave_way += 1
            self._cut(one)
        if not spare:
            self._refused += 1
        return bool(spare)

    def _close_late(self, one: ClientConnection) -> None:
        """End a request that did not come: with 408 if it has begun, else without a word."""
        if one.conn.has_part_of_header:
            one.refuse(
                HTTPStatus.REQUEST_TIMEOUT,
                ErrorCode.INVALID_REQUEST,
                f"The header did not come within {self.limits.header_s:g} s.",
            )
        else:
            one.transport.close()

    def _end_vanished(self) -> None:
        """End requests whose client has reset the connection.

        uvicorn notices it by reading, and reads no further once the client has sent its next
        request.
        """
        answering = {
            one.transport.get_extra_info("socket").fileno(): one
            for one in self.of()
            if one.waiting is Waiting.ANSWER
        }
        poll = select.poll()
        for number in answering:
            poll.register(number, 0)  # errors are always told
        for number, _ in poll.poll(0):
            self._cut(answering[number])

    def _cut(self, one: ClientConnection) -> None:
        one.transport.abort()
        self.state.connections.discard(one)

    def _tell(self) -> None:
        if not (self._refused or self._gave_way) or self.now() - self._told_at < TELL_EVERY_S:
            return
        log.warning(
            "connections.too_many",
            open=len(self.state.connections),
            most=self.limits.max_open,
            gave_way=self._gave_way,
            refused=self._refused,
        )
        self._refused = self._gave_way = 0
        self._told_at = self.now()


def _problem(status: HTTPStatus, code: ErrorCode, detail: str) -> bytes:
    """Return a whole answer of HTTP/1.1 with a problem document."""
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
