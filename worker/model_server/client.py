"""HTTP requests to the model server in a container, and to nowhere else.

There are no redirects, no proxies and no compression. The size of an answer, the time of an
exchange, and the work that an answer can cause (`http_exchange`) are limited. A hook has a path and
no host, so it can only be sent to the container's own port.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx2

from modelyard.contract.catalog.entries import Hook
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.messages import MAX_RESULT_BYTES
from worker.engine.protocol import Address
from worker.model_server.http_exchange import BoundedTransport, RefusedError, to_address
from worker.model_server.probes import NOBODY_LISTENS, ProbeResult, ProbeVerdict
from worker.model_server.results import Reply, too_large
from worker.model_server.templates import Placeholders

PROBE_S = 2.0
"""Seconds that one readiness probe may take."""
PROBES_AT_ONCE = 64
"""Probes that one worker sends at the same time; further ones wait."""
EXCERPT_CHARS = 1_000
"""Characters of an error answer's body that are quoted in the error."""
_PATH_CHARS = 200
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


def http_client(transport: httpx2.AsyncBaseTransport | None = None) -> httpx2.AsyncClient:
    """Return an HTTP client for model servers; its callers limit the time."""
    return httpx2.AsyncClient(
        transport=transport or BoundedTransport(),
        follow_redirects=False,
        trust_env=False,
        timeout=None,  # each call has a deadline for the whole exchange
        # To a cookie jar all containers are one host: it would send the cookies of one model to
        # every other.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        headers={
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Connection": "close",
        },
    )


class ModelServer:
    """The requests that a worker sends to its containers."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        """`client` is made by `http_client`."""
        self._client = client
        self._probes = asyncio.Semaphore(PROBES_AT_ONCE)

    async def probe(self, address: Address, path: str) -> ProbeResult:
        """Send GET `path`; a 2xx means yes. Raises `spec_refused` if `path` is invalid."""
        async with self._probes:
            try:
                async with (
                    asyncio.timeout(PROBE_S),
                    self._client.stream(
                        "GET", _url(address, path), extensions=to_address(address)
                    ) as response,
                ):
                    return _probe_result(response.status_code)
            except RefusedError as error:
                return ProbeResult(ProbeVerdict.NO, str(error), nobody_listens=True)
            except TimeoutError:
                return ProbeResult(ProbeVerdict.SILENT, f"nothing within {PROBE_S:g} s")
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                closed = isinstance(error, httpx2.ReadError | httpx2.RemoteProtocolError)
                return ProbeResult(ProbeVerdict.SILENT, str(error), nobody_listens=closed)

    async def send(
        self, address: Address, hook: Hook, fillings: Placeholders, *, failure: ErrorCode
    ) -> None:
        """Send `hook` and return after a 2xx answer, whose content is ignored.

        The caller sets the deadline. Raises what `ask` raises.
        """
        async with self._exchange(address, hook, fillings, failure) as response:
            # Read to the end: a server may send the 2xx at once and end the body when it is done.
            await _read_capped(response, MAX_RESULT_BYTES)

    async def ask(
        self, address: Address, hook: Hook, fillings: Placeholders, *, failure: ErrorCode
    ) -> Reply:
        """Send `hook` and return its 2xx answer. The caller sets the deadline.

        Raises `RefusedByServerError` for another status and `NoAnswerError` without an answer, both
        with the code `failure`, and `result_too_large`.
        """
        async with self._exchange(address, hook, fillings, failure) as response:
            body = await _read_capped(response, MAX_RESULT_BYTES + 1)
            if len(body) > MAX_RESULT_BYTES:
                raise too_large()
            return Reply(
                _asked(hook),
                response.status_code,
                response.headers.get("Content-Type", ""),
                _encodings(response),
                body,
            )

    @asynccontextmanager
    async def _exchange(
        self, address: Address, hook: Hook, fillings: Placeholders, failure: ErrorCode
    ) -> AsyncIterator[httpx2.Response]:
        """Send `hook` and yield its 2xx answer, whose body is not read yet."""
        headers = {
            name: fillings.in_header(value)
            for name, value in hook.headers.items()
            if name.lower() not in _FRAMING
        }
        content = None
        if hook.body is not None:
            content = fillings.in_body(hook.body).encode()
            if not any(name.lower() == "content-type" for name in headers):
                headers["Content-Type"] = "application/json"
        asked = _asked(hook)
        try:
            url = _url(address, hook.path, fillings)
            async with self._client.stream(
                hook.method,
                url,
                headers=_encoded(headers),
                content=content,
                extensions=to_address(address),
            ) as response:
                if not response.is_success:
                    excerpt = await _excerpt(response)
                    raise RefusedByServerError(failure, asked, response.status_code, excerpt)
                yield response
        except RefusedError as error:
            raise NoAnswerError(failure, f"{asked}: {error} {NOBODY_LISTENS}") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
            reason = str(error) or type(error).__name__
            raise NoAnswerError(
                failure, f"The model server gave no complete answer to {asked}: {reason}"
            ) from error


def _probe_result(status: int) -> ProbeResult:
    if 200 <= status < 300:  # noqa: PLR2004 - the class of success
        return ProbeResult(ProbeVerdict.YES, str(status), status)
    answer = ProbeVerdict.SILENT if status in _MODEL_NOT_REACHED else ProbeVerdict.NO
    return ProbeResult(answer, str(status), status)


def _encodings(response: httpx2.Response) -> tuple[str, ...]:
    """Return the content codings that change a body; RFC 9110, 8.4: a list, in any case."""
    listed = ",".join(response.headers.get_list("Content-Encoding"))
    names = (name.strip().lower() for name in listed.split(","))
    return tuple(name for name in names if name not in {"", "identity"})


async def _excerpt(response: httpx2.Response) -> str:
    """Return the beginning of an error answer's body, or what came before it broke off."""
    body = bytearray()
    with suppress(httpx2.TransportError):
        await _read_capped(response, EXCERPT_CHARS * 4, into=body)
    return body.decode(errors="replace")[:EXCERPT_CHARS]


async def _read_capped(
    response: httpx2.Response, most: int, into: bytearray | None = None
) -> bytes:
    """Return the body, not decoded, cut after `most` bytes."""
    body = bytearray() if into is None else into
    async for piece in response.aiter_raw():
        body += piece
        if len(body) >= most:
            break
    return bytes(body[:most])


def _asked(hook: Hook) -> str:
    """Return the method and path for error messages, without the input filled in."""
    return f"{hook.method} {hook.path}"


def _url(address: Address, path: str, fillings: Placeholders | None = None) -> str:
    """Return the URL of a path; raises `spec_refused` if the path is invalid.

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
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"http://{host}:{address.port}{fillings.in_path(path) if fillings else path}"


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("ascii"), value.encode()) for name, value in headers.items()]
