"""Bounds on client connections: how many may be open, and how long each may wait.

Every wait for a client has a limit: for its first byte, for the rest of a header, for its next
request, and for it to read on in an answer. `sweep`, called twice a second, checks what each
connection waits for; that is simpler than a timer for every wait, and cheap for thousands of
connections.

If too many connections are open, idle ones are closed for new ones, beginning with the address that
has the most. A client that has stopped reading its answer loses its connection too; one that still
reads does not. A new connection is refused (503) only if all the others are being served.
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
from typing import cast
from urllib.parse import unquote

import structlog
from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.utils import get_local_addr, get_remote_addr
from uvicorn.server import ServerState

from gateway.http.request_cycle import RequestCycle, Wire
from gateway.http.request_parser import End, RefusedBytesError, RequestHeader, RequestParser
from modelyard.contract import answers
from modelyard.contract.answers import PROBLEM_MEDIA_TYPE
from modelyard.contract.errors import SENTENCES, ErrorCode

log = structlog.get_logger(__name__)

ASGI = {"version": "3.0", "spec_version": "2.3"}
LOG_EVERY_S = 10.0
"""Least seconds between two log lines about refused or closed connections."""
STALLED_S = 5.0
"""Seconds after which a client that reads nothing of its answer may lose its connection."""
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
    READER = "reader"
    """The client, which has to read what was written."""
    ANSWER = "answer"
    """The app, which has its own deadlines."""


class ClientConnection(asyncio.Protocol):
    """One connection of a client: its requests are answered one after the other."""

    def __init__(self, app: ASGIApp, all_: "ClientConnections") -> None:
        self.waiting = Waiting.HEADER
        self.since = all_.now()
        self.read_on_at = all_.now()
        """When the client had last read all that was written, or enough for more to be written."""
        self.took_at = all_.now()
        """When the client had last read anything of what was written."""
        self.parser = RequestParser()
        self.cycle: RequestCycle | None = None
        """The newest request and its answer."""
        self._app = app
        self._all = all_
        self._unsent = 0
        self._seen: RequestCycle | None = None

    @property
    def address(self) -> str:
        """The client's address."""
        return self.client[0] if self.client else "unknown"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept a new connection, if there is room for it or idle ones can be closed."""
        self.transport = cast("asyncio.Transport", transport)
        self.flow = FlowControl(self.transport)
        self.server = get_local_addr(self.transport)
        self.client = get_remote_addr(self.transport)
        # uvicorn's type lists its own classes; of a connection it calls only `shutdown`.
        self._all.state.connections.add(self)  # type: ignore[arg-type]
        if not self._all.make_room(self):
            self.refuse(
                HTTPStatus.SERVICE_UNAVAILABLE,
                ErrorCode.UNAVAILABLE,
                "Too many connections are open.",
            )

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Let the app know that the client has gone."""
        self._all.state.connections.discard(self)
        if self.cycle is not None and not self.cycle.answered:
            self.cycle.disconnect()
        self.flow.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Handle bytes of the client; those that follow a refusal are dropped."""
        if not self.transport.is_closing():
            self.parser.feed(data)
            self._read_on()

    def _read_on(self) -> None:
        try:
            while (event := self.parser.next_event()) is not None:
                self._handle(event)
        except RefusedBytesError as error:
            self.refuse(
                error.status,
                ErrorCode.INVALID_REQUEST,
                "This is not a valid HTTP/1.1 request, or servers might parse it differently.",
            )
            return
        if self.parser.holds_back:
            self.flow.pause_reading()

    def _handle(self, event: RequestHeader | bytes | End) -> None:
        if isinstance(event, RequestHeader):
            self._begin(event)
            return
        cycle = self.cycle
        if cycle is None or cycle.answered:
            # The rest of a body that the app did not read.
            if event is End.OF_REQUEST:
                self.parser.start_next()
        elif isinstance(event, bytes):
            cycle.add(event)
        else:
            cycle.end_request()

    def _begin(self, header: RequestHeader) -> None:
        headers = self._all.state.default_headers
        wire = Wire(self.transport, self.flow, self._resume_reading, headers)
        cycle = RequestCycle(header, self._scope(header), wire, self._on_answered)
        self.cycle = cycle
        task = asyncio.get_running_loop().create_task(cycle.run(self._app))
        self._all.state.tasks.add(task)
        task.add_done_callback(self._all.state.tasks.discard)

    def _scope(self, header: RequestHeader) -> Scope:
        path, _, query = header.target.partition(b"?")
        return {
            "type": "http",
            "asgi": ASGI,
            "http_version": header.version,
            "server": self.server,
            "client": self.client,
            "scheme": "http",
            "method": header.method,
            "root_path": "",
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "headers": header.headers,
            "state": {},
        }

    def _resume_reading(self) -> None:
        """Read on, unless the client's next request has to wait for its turn."""
        if not self.parser.holds_back:
            self.flow.resume_reading()

    def _on_answered(self) -> None:
        self._all.state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.parser.done:
            self.parser.start_next()
            self._read_on()

    def refuse(self, status: HTTPStatus, code: ErrorCode, detail: str) -> None:
        """Answer without the app and close; if an answer has begun, only close."""
        cycle = self.cycle
        if cycle is None or cycle.answered or not cycle.answer_begun:
            self.transport.write(_problem(status, code, detail))
        if cycle is not None and not cycle.answered:
            cycle.disconnect()
        self.transport.close()

    def shutdown(self) -> None:
        """Close as soon as the request in flight is answered."""
        if self.cycle is None or self.cycle.answered:
            self.transport.close()
        else:
            self.cycle.keep_alive = False

    def pause_writing(self) -> None:
        """Write no more for now, because the client does not read."""
        self.flow.pause_writing()

    def resume_writing(self) -> None:
        """Continue to write, because the client has read."""
        self.read_on_at = self.took_at = self._all.now()
        self.flow.resume_writing()

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
        if self.transport.get_write_buffer_size() or self.transport.is_closing():
            return Waiting.READER
        if self.cycle is None:
            return Waiting.HEADER
        if not self.cycle.answered:
            return Waiting.ANSWER
        if self.parser.in_body or self.parser.has_part_of_header:
            return Waiting.HEADER
        return Waiting.NEXT_REQUEST


@dataclass
class ClientConnections:
    """All client connections of a server."""

    limits: ConnectionLimits = field(default_factory=ConnectionLimits)
    now: Callable[[], float] = time.monotonic
    state: ServerState = field(default_factory=ServerState)
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
            if one.waiting is Waiting.READER and now - one.read_on_at > self.limits.write_s:
                self._abort(one)
            elif one.waiting is Waiting.HEADER and now - one.since > self.limits.header_s:
                self._close_late(one)
            elif one.waiting is Waiting.NEXT_REQUEST and now - one.since > self.limits.idle_s:
                one.transport.close()
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

    def _close_late(self, one: ClientConnection) -> None:
        """Close a connection whose header is late: with 408 if part of it came, else silently."""
        if one.parser.has_part_of_header:
            one.refuse(
                HTTPStatus.REQUEST_TIMEOUT,
                ErrorCode.INVALID_REQUEST,
                f"The header did not arrive within {self.limits.header_s:g} s.",
            )
        else:
            one.transport.close()

    def _abort_reset(self) -> None:
        """Abort requests whose client has reset the connection.

        A reset is noticed only by reading, and a connection stops reading once the client has sent
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
