"""Reads the bodies and headers of requests within bounds, because they are not trusted."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request
from pydantic import TypeAdapter, ValidationError

from gateway.problems import FaultyRequestError, SlowRequestError
from gateway.submission.body_budget import BodyBudget, Share
from modelyard.contract.answers import Fault
from modelyard.contract.errors import ErrorCode, InvalidRequestError
from modelyard.contract.messages import Key
from modelyard.contract.validation import MAX_LISTED_ERRORS, MAX_POINTER_CHARS, message_of
from modelyard.process.body_process import LARGE_BODY_BYTES

MOST_WAIT_S = 60.0
"""The longest that a request may wait for the end of its operation."""
BODY_S = 30.0
"""How long a client may take to send a body; what it has sent uses memory meanwhile."""

KEY_HEADER = "Idempotency-Key"
_KEY: TypeAdapter[str] = TypeAdapter(Key)
DRY_RUN = "dry_run"
_UNKNOWN = {"wait": "is not known here; the header `Prefer: wait=N` waits for the end"}
_BOOLEAN: TypeAdapter[bool] = TypeAdapter(bool)
_WAIT = re.compile(r"\s*wait\s*=\s*\"?(\d{1,9})\"?\s*(?:;.*)?", re.IGNORECASE)


@asynccontextmanager
async def receive(request: Request, budget: BodyBudget, *, max_bytes: int) -> AsyncIterator[bytes]:
    """Receive the body of a request; it has its share of the budget while the context lasts.

    Raises `InvalidRequestError` with `unsupported_media_type` or `body_too_large`,
    `SlowRequestError` and `BudgetSpentError`. No more than `max_bytes` bytes are kept, whatever
    the client announces, and not for longer than `BODY_S` seconds.
    """
    _check_media_type(request)
    announced = announced_bytes(request)
    if announced > max_bytes:
        raise body_too_large(max_bytes)
    with budget.share() as share:
        if announced >= LARGE_BODY_BYTES:
            await share.grow_to(announced)
        try:
            async with asyncio.timeout(BODY_S):
                body = await _read_capped(request, share, max_bytes)
        except TimeoutError as error:
            raise SlowRequestError(f"The body did not arrive within {BODY_S:.0f} s.") from error
        yield body


def idempotency_key(request: Request) -> str | None:
    """Return the request's idempotency key, if any; raises `FaultyRequestError` if invalid."""
    values = request.headers.getlist(KEY_HEADER)
    if not values:
        return None
    if len(values) > 1:
        raise FaultyRequestError([Fault(header=KEY_HEADER, message="It was sent twice.")])
    try:
        return _KEY.validate_python(values[0])
    except ValidationError as error:
        message = message_of(error.errors(include_input=False)[0])
        raise FaultyRequestError([Fault(header=KEY_HEADER, message=message)]) from error


def preferred_wait(request: Request) -> float | None:
    """Return the seconds of `Prefer: wait=N` (RFC 7240), at most 60; null without it.

    Other preferences are ignored, as the RFC demands.
    """
    for header in request.headers.getlist("Prefer"):
        for preference in header.split(","):
            match = _WAIT.fullmatch(preference)
            if match is not None:
                return min(float(match.group(1)), MOST_WAIT_S)
    return None


def is_dry_run(request: Request) -> bool:
    """Tell whether `dry_run=true` is in the query; raises `FaultyRequestError` if it is unclear.

    Any other parameter is refused: with `dryrun=true` ignored, a request would be made that its
    client wanted to try only.
    """
    if not request.scope.get("query_string"):
        return False
    _refuse_parameters(request, but=DRY_RUN)
    values = request.query_params.getlist(DRY_RUN)
    if not values:
        return False
    if len(values) > 1:
        raise FaultyRequestError([Fault(parameter=DRY_RUN, message="It was sent twice.")])
    try:
        return _BOOLEAN.validate_python(values[0])
    except ValidationError as error:
        raise FaultyRequestError(
            [Fault(parameter=DRY_RUN, message="It is true or false.")]
        ) from error


def refuse_dry_run(request: Request) -> None:
    """Raise `FaultyRequestError` for a dry run, which there is not here, and for any parameter."""
    if is_dry_run(request):
        message = "Only a single request has a dry run, at /v1/jobs."
        raise FaultyRequestError([Fault(parameter=DRY_RUN, message=message)])


def _refuse_parameters(request: Request, *, but: str) -> None:
    unknown = sorted({name for name in request.query_params if name != but})
    if unknown:
        told = [(name[:MAX_POINTER_CHARS], _UNKNOWN.get(name, "is not known")) for name in unknown]
        faults = [Fault(parameter=name, message=message) for name, message in told]
        raise FaultyRequestError(faults[:MAX_LISTED_ERRORS])


def _check_media_type(request: Request) -> None:
    media_type = request.headers.get("Content-Type", "").split(";")[0].strip().lower()
    if media_type != "application/json":
        raise InvalidRequestError(ErrorCode.UNSUPPORTED_MEDIA_TYPE)
    if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise InvalidRequestError(
            ErrorCode.UNSUPPORTED_MEDIA_TYPE, "The body must be sent without a content encoding."
        )


def announced_bytes(request: Request) -> int:
    """Return the body size that `Content-Length` announces; 0 if it is missing or no number."""
    announced = request.headers.get("Content-Length", "")
    return int(announced[:20]) if announced.isascii() and announced.isdigit() else 0


async def _read_capped(request: Request, share: Share, max_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise body_too_large(max_bytes)
        if len(body) >= LARGE_BODY_BYTES and len(body) > share.held:
            await share.grow_to(min(2 * len(body), max_bytes))
    return bytes(body)


def body_too_large(max_bytes: int) -> InvalidRequestError:
    """Return the error for a body of more than `max_bytes`."""
    return InvalidRequestError(
        ErrorCode.BODY_TOO_LARGE, f"At most {max_bytes} bytes are allowed.", max_bytes=max_bytes
    )
