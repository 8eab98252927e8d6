"""Bodies and headers of requests, read as what they are: not trusted yet."""

import asyncio
import re
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, TypeAdapter, ValidationError

from gateway.problems import FaultyRequestError, SlowRequestError, faults_of
from modelyard.contract.answers import Fault
from modelyard.contract.errors import ErrorCode, InvalidRequestError
from modelyard.contract.messages import Key
from modelyard.contract.strict_json import JsonValue, parse_json

MOST_WAIT_S = 60.0
"""The longest that a request may wait for the end of its operation."""
BODY_S = 30.0
"""How long a client may take to send a body: what it has sent is kept for it so long."""
LARGE_BODY_BYTES = 64 << 10
"""From here on a body is parsed in a thread, so that the event loop goes on."""

KEY_HEADER = "Idempotency-Key"
_KEY: TypeAdapter[str] = TypeAdapter(Key)
_WAIT = re.compile(r"\s*wait\s*=\s*\"?(\d{1,9})\"?\s*(?:;.*)?", re.IGNORECASE)

M = TypeVar("M", bound=BaseModel)


async def read_json(request: Request, *, max_bytes: int) -> JsonValue:
    """Read and parse the body of a request.

    Raises `InvalidRequestError` with `unsupported_media_type`, `body_too_large` or
    `invalid_json`, and `SlowRequestError`. No more than `max_bytes` bytes are kept, whatever the
    client announces, and not for longer than `BODY_S` seconds.
    """
    _check_media_type(request)
    try:
        async with asyncio.timeout(BODY_S):
            body = await _read_capped(request, max_bytes)
    except TimeoutError as error:
        raise SlowRequestError(f"The body did not come within {BODY_S:.0f} s.") from error
    if len(body) < LARGE_BODY_BYTES:
        return parse_json(body, max_bytes=max_bytes)
    return await asyncio.to_thread(parse_json, body, max_bytes=max_bytes)


def validated(kind: type[M], value: JsonValue, *, under: str = "") -> M:
    """Return the value as a message; raises `FaultyRequestError` with pointers below `under`."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise FaultyRequestError(faults_of(error, under=under)) from error


def idempotency_key(request: Request) -> str | None:
    """Return the request's idempotency key; raises `FaultyRequestError` if it is not one."""
    given = request.headers.getlist(KEY_HEADER)
    if not given:
        return None
    if len(given) > 1:
        raise FaultyRequestError([Fault(header=KEY_HEADER, message="It stands there twice.")])
    try:
        return _KEY.validate_python(given[0])
    except ValidationError as error:
        message = "A key is 1 to 255 printable ASCII characters without spaces."
        raise FaultyRequestError([Fault(header=KEY_HEADER, message=message)]) from error


def preferred_wait(request: Request) -> float | None:
    """Return the seconds of `Prefer: wait=N` (RFC 7240), at most 60; null if there are none.

    What is not understood is ignored, as that standard asks.
    """
    for header in request.headers.getlist("Prefer"):
        for preference in header.split(","):
            match = _WAIT.fullmatch(preference)
            if match is not None:
                return min(float(match.group(1)), MOST_WAIT_S)
    return None


def _check_media_type(request: Request) -> None:
    media_type = request.headers.get("Content-Type", "").split(";")[0].strip().lower()
    if media_type != "application/json":
        raise InvalidRequestError(ErrorCode.UNSUPPORTED_MEDIA_TYPE)
    if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise InvalidRequestError(
            ErrorCode.UNSUPPORTED_MEDIA_TYPE, "The body must be sent without a content encoding."
        )


async def _read_capped(request: Request, max_bytes: int) -> bytes:
    announced = request.headers.get("Content-Length", "")
    if announced.isascii() and announced.isdigit() and int(announced[:20]) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    return bytes(body)


def _too_large(max_bytes: int) -> InvalidRequestError:
    return InvalidRequestError(
        ErrorCode.BODY_TOO_LARGE, f"At most {max_bytes} bytes are taken.", max_bytes=max_bytes
    )
