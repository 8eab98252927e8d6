"""HTTP requests to the model server in a container, and to nowhere else.

There are no redirects, no proxies and no compression. The size of an answer, the time of an
exchange, and the work that an answer can cause (`http_exchange`) are limited. A hook has a path and
no host, so it can only be sent to the container's own port.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import httpx2

from modelyard.contract.catalog.entries import Hook, Probe
from modelyard.contract.content.transfers import MAX_CONTENT_BYTES, PIECE_BYTES, StoredResult
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.messages import MAX_RESULT_BYTES
from worker.engine.protocol import Address
from worker.model_server.connections import BrokenConnectionError, NoExchangeError, RefusedError
from worker.model_server.http_exchange import Answer, Request, RequestBody, Transport, nothing
from worker.model_server.probes import NOBODY_LISTENS, ProbeResult, ProbeVerdict
from worker.model_server.results import Reply, too_large
from worker.model_server.templates import Placeholders

PROBE_S = 2.0
"""Seconds that one readiness probe may take."""
PROBES_AT_ONCE = 64
"""Probes that one worker sends at the same time; further ones wait."""
PROBED_BYTES = 64 << 10
"""Bytes of an answer in which the expected text of a probe is looked for."""
_TEXT_CHARS = 100
"""Characters of that text which are quoted."""
EXCERPT_CHARS = 1_000
"""Characters of an error answer's body that are quoted in the error."""
EXCERPT_S = 1.0
"""Seconds for reading them: the status is known, and does not wait for a body that is slow."""
_PATH_CHARS = 200
"""Characters of an invalid path that are quoted in the error, and of a path that is encoded once
and remembered; longer ones contain an input."""
_PATH = re.compile(r"/(?!/)[^\x00-\x1f\x7f]*")
# Headers that frame the message: set by a hook they could contradict what is really sent.
_FRAMING = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "upgrade", "expect", "te"}
)
_MODEL_NOT_REACHED = frozenset({408, 429, 502, 504})
"""Request Timeout, Too Many Requests, Bad Gateway, Gateway Timeout: the request did not reach the
model."""


class NoAnswerError(ModelyardError):
    """No complete HTTP answer came: the connection was refused or broke, or the answer was invalid.

    Perhaps the container has just exited.
    """


class RefusedByServerError(ModelyardError):
    """The server answered with a status other than 2xx."""

    def __init__(self, code: ErrorCode, asked: str, status: int, body: str) -> None:
        """`asked` is method and path; `body` is an excerpt."""
        redirect = 300 <= status < 400  # noqa: PLR2004 - the class of redirects
        what = "a redirect, which is not followed" if redirect else "an error"
        super().__init__(
            code,
            f"The model server answered {status} to {asked}, {what}.",
            asked=asked,
            status=status,
            body=body,
        )
        self.asked = asked
        self.status = status
        self.body = body


@dataclass(frozen=True, slots=True)
class Question:
    """What a server is asked with one hook."""

    hook: Hook
    fillings: Placeholders
    failure: ErrorCode
    """The code of the error if the server does not answer with a 2xx."""
    uploaded: "UploadedContent | None" = None
    """Sent in place of the hook's body, as it is."""
    before_sending: Callable[[], None] = nothing
    """Called once there is a connection to the server; nothing is sent if it raises."""


class UploadedContent(RequestBody, Protocol):
    """Content with its media type."""

    @property
    def content_type(self) -> str:
        """The media type."""


KeepLarge = Callable[[str, AsyncIterator[bytes]], Awaitable[StoredResult]]
"""Stores a body, given its `Content-Type` and its pieces: each but the last has `PIECE_BYTES`."""


async def refuse_large(_content_type: str, _pieces: AsyncIterator[bytes]) -> StoredResult:
    """Raise `result_too_large`."""
    raise too_large()


class ModelServer:
    """The requests that a worker sends to its containers."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._probes = asyncio.Semaphore(PROBES_AT_ONCE)

    async def probe(self, address: Address, probe: Probe) -> ProbeResult:
        """Send a probe; a 2xx means yes, with `body_contains` one with that text in its body.

        Raises `spec_refused` if its path is invalid.
        """
        _check_path(probe.path)
        async with self._probes:
            try:
                request = Request("GET", _target(probe.path), _unframed(probe.headers))
                async with (
                    asyncio.timeout(PROBE_S) as limit,
                    self._transport.exchange(address, request) as answer,
                ):
                    result = _probe_result(answer.status)
                    if result.answer is not ProbeVerdict.YES:
                        ends_at = limit.when()
                        limit.reschedule(None)  # what the status proves stands, whatever follows
                        return result.with_body(await _excerpt(answer, ends_at))
                    if probe.body_contains is not None:
                        return await _with_text(answer, probe.body_contains)
                    return result
            except RefusedError as error:
                return ProbeResult(ProbeVerdict.NO, str(error), nobody_listens=True)
            except TimeoutError:
                return ProbeResult(ProbeVerdict.SILENT, f"nothing within {PROBE_S:g} s")
            except NoExchangeError as error:
                broken = isinstance(error, BrokenConnectionError)
                return ProbeResult(ProbeVerdict.SILENT, str(error), nobody_listens=broken)

    async def send(
        self, address: Address, hook: Hook, fillings: Placeholders, *, failure: ErrorCode
    ) -> None:
        """Send `hook` and return after a 2xx answer, whose content is ignored.

        The caller sets the deadline. Raises what `ask` raises.
        """
        async with self._exchange(address, Question(hook, fillings, failure)) as answer:
            # Read to the end: a server may send the 2xx at once and end the body when it is done.
            await answer.read(MAX_RESULT_BYTES, bytearray())

    async def ask(
        self,
        address: Address,
        question: "Question",
        *,
        keeps_connection: bool = False,
        keep_large: KeepLarge = refuse_large,
    ) -> Reply:
        """Send a question and return its 2xx answer. The caller sets the deadline.

        With `keeps_connection` the next request to this server may use the same connection.
        A body of more than `MAX_RESULT_BYTES` is given to `keep_large`. It is read as its pieces
        are taken, so the server waits meanwhile.

        An uploaded body is sent piece by piece, over a connection of its own: such a request can't
        be sent again.

        Raises `RefusedByServerError` for another status and `NoAnswerError` without an answer, both
        with the code of the question, and `result_too_large`.
        """
        async with self._exchange(address, question, keeps_connection=keeps_connection) as answer:
            body = bytearray()
            await answer.read(MAX_RESULT_BYTES + 1, body)
            encodings = _encodings(answer)
            content_type = ", ".join(answer.header("content-type"))
            stored = None
            if len(body) > MAX_RESULT_BYTES and not encodings:  # an encoded one is refused anyway
                stored = await keep_large(content_type, _pieces(answer, body))
            asked = _asked(question.hook)
            return Reply(asked, answer.status, content_type, encodings, body, stored)

    @asynccontextmanager
    async def _exchange(
        self, address: Address, question: "Question", *, keeps_connection: bool = False
    ) -> AsyncIterator[Answer]:
        """Send a question and yield its 2xx answer, whose body is not read yet."""
        asked, failure = _asked(question.hook), question.failure
        try:
            request = _request_of(question, keeps_connection=keeps_connection)
            async with self._transport.exchange(address, request) as answer:
                if not 200 <= answer.status < 300:  # noqa: PLR2004 - the class of success
                    excerpt = await _excerpt(answer)
                    raise RefusedByServerError(failure, asked, answer.status, excerpt)
                yield answer
        except RefusedError as error:
            raise NoAnswerError(failure, f"{asked}: {error} {NOBODY_LISTENS}") from error
        except (NoExchangeError, UnicodeError) as error:
            raise NoAnswerError(
                failure, f"The model server gave no complete answer to {asked}: {error}"
            ) from error


async def _pieces(answer: Answer, body: bytearray) -> AsyncIterator[bytes]:
    """Yield the body, of which the beginning was read; raises `result_too_large`."""
    if (answer.length or 0) > MAX_CONTENT_BYTES:
        raise too_large(MAX_CONTENT_BYTES)
    size = 0
    while True:
        if len(body) < PIECE_BYTES:
            await answer.read(PIECE_BYTES, body)
        if not body:
            return
        piece = bytes(body[:PIECE_BYTES])
        del body[:PIECE_BYTES]
        size += len(piece)
        if size > MAX_CONTENT_BYTES:
            raise too_large(MAX_CONTENT_BYTES)
        yield piece


def _probe_result(status: int) -> ProbeResult:
    if 200 <= status < 300:  # noqa: PLR2004 - the class of success
        return ProbeResult(ProbeVerdict.YES, str(status), status)
    answer = ProbeVerdict.SILENT if status in _MODEL_NOT_REACHED else ProbeVerdict.NO
    return ProbeResult(answer, str(status), status)


async def _with_text(answer: Answer, text: str) -> ProbeResult:
    """Read a 2xx answer as far as needed; without the text in it, it means no."""
    body = bytearray()
    await answer.read(PROBED_BYTES, body)
    if text.encode() in body:
        return ProbeResult(ProbeVerdict.YES, str(answer.status), answer.status)
    heard = f"{answer.status} without {text[:_TEXT_CHARS]!r} in the body"
    return ProbeResult(ProbeVerdict.NO, heard, answer.status).with_body(_beginning(body))


def _unframed(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in headers.items() if name.lower() not in _FRAMING)


def _encodings(answer: Answer) -> tuple[str, ...]:
    """Return the content codings that change a body; RFC 9110, 8.4: a list, in any case."""
    listed = ",".join(answer.header("content-encoding"))
    names = (name.strip().lower() for name in listed.split(","))
    return tuple(name for name in names if name not in {"", "identity"})


async def _excerpt(answer: Answer, ends_at: float | None = None) -> str:
    """Return the beginning of an error answer's body, as much of it as came.

    It waits for `EXCERPT_S` seconds, and not after `ends_at`, a time of the event loop. The status
    stands, also if the rest of the body that is being sent does not come.
    """
    body = bytearray()
    latest = asyncio.get_running_loop().time() + EXCERPT_S
    with suppress(NoExchangeError, TimeoutError, ModelyardError):
        async with asyncio.timeout_at(latest if ends_at is None else min(latest, ends_at)):
            await answer.read(EXCERPT_CHARS * 4, body)
    return _beginning(body)


def _beginning(body: bytearray) -> str:
    return body[: EXCERPT_CHARS * 4].decode(errors="replace")[:EXCERPT_CHARS]


def _request_of(question: Question, *, keeps_connection: bool) -> Request:
    """Return the request that a hook asks for; raises `spec_refused` if its path is invalid."""
    hook, fillings, uploaded = question.hook, question.fillings, question.uploaded
    headers = [(name, fillings.in_header(value)) for name, value in _unframed(hook.headers)]
    content: bytes | RequestBody | None = None
    if uploaded is not None:
        content, keeps_connection = uploaded, False
        headers = [one for one in headers if one[0].lower() != "content-type"]
        headers.append(("Content-Type", uploaded.content_type))
    elif hook.body is not None:
        content = fillings.in_body(hook.body).encode()
        if not any(name.lower() == "content-type" for name, _ in headers):
            headers.append(("Content-Type", "application/json"))
    _check_path(hook.path)
    return Request(
        hook.method,
        _target(fillings.in_path(hook.path)),
        tuple(headers),
        content,
        keeps_connection,
        question.before_sending,
    )


def _asked(hook: Hook) -> str:
    """Return the method and path for error messages, without the input filled in."""
    return f"{hook.method} {hook.path}"


def _check_path(path: str) -> None:
    """Raise `spec_refused` if the path is invalid.

    The catalog checks paths too, but a path may also come from a record or a label that an older
    version, or someone else, has written.
    """
    if _PATH.fullmatch(path) is None:
        raise ModelyardError(
            ErrorCode.SPEC_REFUSED,
            f"{path[:_PATH_CHARS]!r} is not a valid path of a hook: it has to begin with exactly "
            "one / and to contain no control characters. Store a corrected model in the catalog, "
            "and create the job again.",
        )


def _target(path: str) -> str:
    """Return the path and query as a request line has them; raises `NoExchangeError`."""
    return _encoded(path) if len(path) > _PATH_CHARS else _encoded_once(path)


def _encoded(path: str) -> str:
    """Percent-encode a path. The host is a placeholder: the caller of an exchange names it."""
    try:
        return httpx2.URL(f"http://container{path}").raw_path.decode("ascii")
    except httpx2.InvalidURL as error:
        raise NoExchangeError(str(error)) from error


_encoded_once = lru_cache(maxsize=1_024)(_encoded)
