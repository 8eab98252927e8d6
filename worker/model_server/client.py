"""Talking to a model server: one HTTP request to the container's own port, and nowhere else.

No redirects, no proxies, no compression; the answer's size and the whole exchange's time are
capped, and so is the work that an answer can make (`http_exchange`). A hook has a path and never a
host, so it can't be sent anywhere else.
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
from worker.model_server.templates import Fillings

PROBE_S = 2.0
"""Seconds that one readiness probe may take."""
PROBES_AT_ONCE = 64
"""Probes that one worker has under way; the next ones wait for their turn."""
EXCERPT_CHARS = 1_000
"""Characters of a refusal's body that are kept as the cause."""
_PATH_CHARS = 200
_PATH = re.compile(r"/(?!/)[^\x00-\x1f\x7f]*")
# They frame the message; a hook that sets them would talk past what is sent.
_FRAMING = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "upgrade", "expect", "te"}
)
_DID_NOT_ASK = frozenset({408, 429, 502, 504})
"""Request Timeout, Too Many Requests, Bad Gateway, Gateway Timeout: the model was not
asked."""


class NoAnswerError(ModelyardError):
    """No whole answer came: the connection was refused or broke, or what came was not HTTP.

    Perhaps the container has just died.
    """


class RefusedByServerError(ModelyardError):
    """The server answered, and not with 2xx."""

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
    """Return a client fit for model servers; time is bounded by the callers."""
    return httpx2.AsyncClient(
        transport=transport or BoundedTransport(),
        follow_redirects=False,
        trust_env=False,
        timeout=None,  # every call below has a deadline over the whole exchange
        # All containers are one address to a cookie jar: it would carry what one model sets to all.
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
        """Ask by a GET of `path` whether it holds now what a 2xx there means.

        Raises `spec_refused` for what is no path.
        """
        async with self._probes:
            try:
                async with (
                    asyncio.timeout(PROBE_S),
                    self._client.stream(
                        "GET", _url(address, path), extensions=to_address(address)
                    ) as response,
                ):
                    return _heard(response.status_code)
            except RefusedError as error:
                return ProbeResult(ProbeVerdict.NO, str(error), nobody_listens=True)
            except TimeoutError:
                return ProbeResult(ProbeVerdict.SILENT, f"nothing within {PROBE_S:g} s")
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                closed = isinstance(error, httpx2.ReadError | httpx2.RemoteProtocolError)
                return ProbeResult(ProbeVerdict.SILENT, str(error), nobody_listens=closed)

    async def tell(
        self, address: Address, hook: Hook, fillings: Fillings, *, failure: ErrorCode
    ) -> None:
        """Send `hook` and return once it was answered with 2xx; what it says does not matter.

        The caller sets the deadline. Raises as `ask` does.
        """
        async with self._sent(address, hook, fillings, failure) as response:
            # A server may send its 2xx at once and take the time until the body's end.
            await _read_capped(response, MAX_RESULT_BYTES)

    async def ask(
        self, address: Address, hook: Hook, fillings: Fillings, *, failure: ErrorCode
    ) -> Reply:
        """Send `hook` and return its 2xx answer. The caller sets the deadline.

        Raises `RefusedByServerError` for any other answer, `NoAnswerError` for none (both with
        the code `failure`), and `result_too_large`.
        """
        async with self._sent(address, hook, fillings, failure) as response:
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
    async def _sent(
        self, address: Address, hook: Hook, fillings: Fillings, failure: ErrorCode
    ) -> AsyncIterator[httpx2.Response]:
        """Send `hook` and give its 2xx answer, whose body is still unread."""
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
                failure, f"The model server gave no whole answer to {asked}: {reason}"
            ) from error


def _heard(status: int) -> ProbeResult:
    if 200 <= status < 300:  # noqa: PLR2004 - the class of success
        return ProbeResult(ProbeVerdict.YES, str(status), status)
    answer = ProbeVerdict.SILENT if status in _DID_NOT_ASK else ProbeVerdict.NO
    return ProbeResult(answer, str(status), status)


def _encodings(response: httpx2.Response) -> tuple[str, ...]:
    """Return the content codings that change a body; RFC 9110, 8.4: names in any case, a list."""
    listed = ",".join(response.headers.get_list("Content-Encoding"))
    names = (name.strip().lower() for name in listed.split(","))
    return tuple(name for name in names if name not in {"", "identity"})


async def _excerpt(response: httpx2.Response) -> str:
    """Return the beginning of a refusal's body; one that breaks off is as long as it is."""
    body = bytearray()
    with suppress(httpx2.TransportError):
        await _read_capped(response, EXCERPT_CHARS * 4, into=body)
    return body.decode(errors="replace")[:EXCERPT_CHARS]


async def _read_capped(
    response: httpx2.Response, most: int, into: bytearray | None = None
) -> bytes:
    """Return the body as it was sent, cut after `most` bytes."""
    body = bytearray() if into is None else into
    async for piece in response.aiter_raw():
        body += piece
        if len(body) >= most:
            break
    return bytes(body[:most])


def _asked(hook: Hook) -> str:
    """Return what is asked, for errors; an input that goes into the path is not filled in."""
    return f"{hook.method} {hook.path}"


def _url(address: Address, path: str, fillings: Fillings | None = None) -> str:
    """Return where a path is asked for; raises `spec_refused` for what is no path.

    The rules of the catalog are not enough: what they did not judge comes here too, out of records
    and labels that an older version or somebody else has written.
    """
    if _PATH.fullmatch(path) is None:
        raise ModelyardError(
            ErrorCode.SPEC_REFUSED,
            f"{path[:_PATH_CHARS]!r} is no path of a hook: it has to begin with exactly one / and "
            "to hold no control characters. Store the model anew, and create the job again.",
        )
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"http://{host}:{address.port}{fillings.in_path(path) if fillings else path}"


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("ascii"), value.encode()) for name, value in headers.items()]
