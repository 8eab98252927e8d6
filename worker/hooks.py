"""Talking to a model server: one HTTP request to the container's own port, and nowhere else.

No redirects, no proxies, no compression; the answer's size and the whole exchange's time are
capped. A hook has a path and never a host, so it can't be sent anywhere else.
"""

import asyncio
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx2

from modelyard.contract.catalog import Hook
from modelyard.contract.errors import ErrorCode, InvalidRequestError, ModelyardError
from modelyard.contract.messages import MAX_RESULT_BYTES
from modelyard.contract.strict_json import dump_json, parse_json
from worker.placeholders import Fillings
from worker.runtime import Address

PROBE_S = 2.0
"""Seconds that one readiness probe may take."""
LARGE_RESULT_BYTES = 32 << 10
"""From here on an answer is read in a thread: the worker's heartbeats don't wait for it."""
EXCERPT_CHARS = 1_000
"""Characters of a refusal's body that are kept as the cause."""
# They frame the message; a hook that sets them would talk past what is sent.
_FRAMING = frozenset({"host", "content-length", "transfer-encoding", "connection", "upgrade"})


class NoAnswerError(ModelyardError):
    """The connection was refused or broke; perhaps the container has just died."""


def http_client(transport: httpx2.AsyncBaseTransport | None = None) -> httpx2.AsyncClient:
    """Return a client fit for model servers; time is bounded by the callers."""
    return httpx2.AsyncClient(
        transport=transport,
        follow_redirects=False,
        trust_env=False,
        timeout=None,  # every call below has a deadline over the whole exchange
        # A server that closes an idle connection just as it is used again would look like one
        # that died; on loopback a new connection costs a fraction of a millisecond.
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
        # All containers are one address to a cookie jar: it would carry what one model sets to all.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        headers={"Accept": "application/json", "Accept-Encoding": "identity"},
    )


class ModelServer:
    """The requests that a worker sends to its containers."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client

    async def answers(self, address: Address, path: str) -> bool:
        """Return whether a GET of `path` answers 2xx now; whatever else happens is no."""
        try:
            async with (
                asyncio.timeout(PROBE_S),
                self._client.stream("GET", _url(address, path)) as response,
            ):
                return response.is_success
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError):
            return False

    async def send(
        self, address: Address, hook: Hook, fillings: Fillings, *, failure: ErrorCode
    ) -> bytes:
        """Send `hook` and return the body of its 2xx answer. The caller sets the deadline.

        Raises `failure` for any other answer and for none, and `result_too_large`.
        """
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
        url = _url(address, fillings.in_path(hook.path))
        try:
            async with self._client.stream(
                hook.method, url, headers=_encoded(headers), content=content
            ) as response:
                return await _take(response, failure)
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
            raise NoAnswerError(
                failure, f"The model server did not answer: {type(error).__name__}: {error}"
            ) from error


async def read_result(body: bytes) -> str:
    """Return an answer as `result_of` does; a large one is read in a thread."""
    if len(body) < LARGE_RESULT_BYTES:
        return result_of(body)
    return await asyncio.to_thread(result_of, body)


def result_of(body: bytes) -> str:
    """Return an answer as compact JSON text; raises `bad_result` and `result_too_large`."""
    try:
        text = dump_json(parse_json(body, max_bytes=MAX_RESULT_BYTES))
    except InvalidRequestError as error:
        if error.code is ErrorCode.BODY_TOO_LARGE:
            raise _too_large() from error
        raise ModelyardError(ErrorCode.BAD_RESULT, error.message) from error
    if len(text.encode()) > MAX_RESULT_BYTES:
        raise _too_large()
    return text


async def _take(response: httpx2.Response, failure: ErrorCode) -> bytes:
    if not response.is_success:
        excerpt = await _read_capped(response, EXCERPT_CHARS * 4)
        what = "a redirect, which is not followed" if response.is_redirect else "an error"
        raise ModelyardError(
            failure,
            f"The model server answered {response.status_code}, {what}.",
            status=response.status_code,
            body=excerpt.decode(errors="replace")[:EXCERPT_CHARS],
        )
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise ModelyardError(failure, "The model server compressed its answer, unasked.")
    body = await _read_capped(response, MAX_RESULT_BYTES + 1)
    if len(body) > MAX_RESULT_BYTES:
        raise _too_large()
    return body


async def _read_capped(response: httpx2.Response, most: int) -> bytes:
    """Return the body as it was sent, cut after `most` bytes."""
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) >= most:
            break
    return bytes(body[:most])


def _too_large() -> ModelyardError:
    return ModelyardError(ErrorCode.RESULT_TOO_LARGE, max_bytes=MAX_RESULT_BYTES)


def _url(address: Address, path: str) -> str:
    return f"http://{address.host}:{address.port}{path}"


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("ascii"), value.encode()) for name, value in headers.items()]
