"""Problem documents: how clients see errors (RFC 9457, with a stable code)."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from gateway.middleware.request_ids import request_id_of
from gateway.monitoring.request_facts import CODE
from gateway.routes.allowed_methods import AllowedMethods
from modelyard.contract import answers
from modelyard.contract.access.scopes import Scope
from modelyard.contract.answers import PROBLEM_MEDIA_TYPE, Fault, Problem
from modelyard.contract.content.media_types import MAX_TYPE_CHARS
from modelyard.contract.errors import SENTENCES, ErrorCode, InvalidRequestError, ModelyardError
from modelyard.contract.validation import (
    MAX_LISTED_ERRORS,
    MAX_POINTER_CHARS,
    error_list,
    message_of,
)

log = structlog.get_logger(__name__)

RETRY_AFTER_S = 1

MAX_ERRORS_BYTES = 12 << 10
"""Most bytes of the `errors` in one problem; with the rest, a document has at most 16 KiB."""
MAX_DETAIL_CHARS = 800
MAX_INSTANCE_CHARS = 256

E = TypeVar("E", bound=Exception)

STATUS_OF: Mapping[ErrorCode, int] = MappingProxyType(
    {
        ErrorCode.INVALID_JSON: 400,
        ErrorCode.INVALID_REQUEST: 422,
        ErrorCode.BODY_TOO_LARGE: 413,
        ErrorCode.UNSUPPORTED_MEDIA_TYPE: 415,
        ErrorCode.BATCH_TOO_LARGE: 422,
        ErrorCode.IDEMPOTENCY_KEY_REUSED: 422,
        ErrorCode.UNKNOWN_MODEL: 422,
        ErrorCode.UNKNOWN_DATASET: 422,
        ErrorCode.INPUT_GONE: 422,
        ErrorCode.UNAUTHENTICATED: 401,
        ErrorCode.TOO_MANY_FAILURES: 429,
        ErrorCode.FORBIDDEN: 403,
        ErrorCode.GRANT_TOO_LARGE: 403,
        ErrorCode.CROSS_SITE: 403,
        ErrorCode.MISDIRECTED: 421,
        ErrorCode.UNSUPPORTED_VERB: 422,
        ErrorCode.NOT_FOUND: 404,
        ErrorCode.NO_SERVING_JOB: 409,
        ErrorCode.METHOD_NOT_ALLOWED: 405,
        ErrorCode.RESULT_NOT_READY: 409,
        ErrorCode.NO_RESULT: 404,
        ErrorCode.ALREADY_ENDED: 409,
        ErrorCode.PRECONDITION_FAILED: 412,
        ErrorCode.NOT_RETRYABLE: 409,
        ErrorCode.NOT_REPLAYABLE: 409,
        ErrorCode.STILL_IN_USE: 409,
        ErrorCode.QUERY_TOO_SLOW: 422,
        ErrorCode.UNAVAILABLE: 503,
        ErrorCode.INTERNAL: 500,
    },
)
"""The HTTP status of each error code that the gateway sends."""

_TRY_AGAIN = frozenset(
    {ErrorCode.UNAVAILABLE, ErrorCode.RESULT_NOT_READY, ErrorCode.TOO_MANY_FAILURES}
)
"""Errors that are sent with `Retry-After`."""

SLOW_STATUS = 408

_CODE_OF_STATUS: Mapping[int, ErrorCode] = MappingProxyType(
    {
        400: ErrorCode.INVALID_REQUEST,
        404: ErrorCode.NOT_FOUND,
        405: ErrorCode.METHOD_NOT_ALLOWED,
        413: ErrorCode.BODY_TOO_LARGE,
        415: ErrorCode.UNSUPPORTED_MEDIA_TYPE,
        422: ErrorCode.INVALID_REQUEST,
    },
)


class FaultyRequestError(InvalidRequestError):
    """A request that violates its schema, with the place of each violation."""

    def __init__(
        self, faults: Sequence[Fault], code: ErrorCode = ErrorCode.INVALID_REQUEST
    ) -> None:
        self.faults = tuple(faults[:MAX_LISTED_ERRORS])
        first = self.faults[0]
        where = (first.pointer or "").lstrip("/") or first.parameter or first.header
        super().__init__(code, f"{f'`{where}`: ' if where else ''}{first.message}")


class SlowRequestError(InvalidRequestError):
    """A request that did not arrive in time; answered with 408, so the client may send it again."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.INVALID_REQUEST, message)


class UnauthenticatedError(ModelyardError):
    """The request has no valid API key; answered with 401 and `WWW-Authenticate`."""

    def __init__(self, message: str, *, close_connection: bool = False) -> None:
        super().__init__(ErrorCode.UNAUTHENTICATED, message)
        self.close_connection = close_connection
        """True if the connection should be closed after the answer."""


class TooManyFailuresError(ModelyardError):
    """The key was not looked up, because too many requests from its address have failed."""

    def __init__(self) -> None:
        super().__init__(
            ErrorCode.TOO_MANY_FAILURES,
            "Too many requests with invalid API keys come from your address, so the gateway did "
            "not check yours. If it is valid, try again in a few seconds.",
        )


class ForbiddenError(ModelyardError):
    """The API key is valid but lacks the scope for this request."""

    def __init__(self, *any_of: Scope) -> None:
        needed = " or ".join(any_of)
        super().__init__(
            ErrorCode.FORBIDDEN, f"This needs the scope {needed}, which the API key does not have."
        )


def wrong_media_type(given: Sequence[str]) -> InvalidRequestError:
    """Return the error for a body that is not JSON; `given` are its values of `Content-Type`."""
    came = f"with {', '.join(given)[:MAX_TYPE_CHARS]!r}" if given else "without a Content-Type"
    return InvalidRequestError(
        ErrorCode.UNSUPPORTED_MEDIA_TYPE,
        f"The body must be sent with `Content-Type: application/json`; it came {came}.",
    )


def faults_of(error: ValidationError, *, under: str = "") -> list[Fault]:
    """Return pydantic's errors with JSON pointers below `under`; they quote no values."""
    return [
        Fault(
            pointer=(under + found["pointer"])[:MAX_POINTER_CHARS],
            message=found["message"],
        )
        for found in error_list(error)
    ]


def problem_of(error: ModelyardError) -> Problem:
    """Return the problem document for an error."""
    return answers.problem(
        error.code,
        SENTENCES[error.code],
        _status_of(error),
        error.message[:MAX_DETAIL_CHARS],
        errors=_as_many_as_fit(error.faults) if isinstance(error, FaultyRequestError) else (),
    )


def bytes_of(faults: Iterable[Fault]) -> int:
    """Return an upper bound of the bytes that a list of faults takes in an answer."""
    return sum(len(fault.model_dump_json().encode()) + 1 for fault in faults)


def _as_many_as_fit(faults: Sequence[Fault]) -> tuple[Fault, ...]:
    ends = itertools.accumulate(bytes_of([fault]) for fault in faults)
    return tuple(fault for fault, end in zip(faults, ends, strict=True) if end <= MAX_ERRORS_BYTES)


def _status_of(error: ModelyardError) -> int:
    if isinstance(error, SlowRequestError):
        return SLOW_STATUS
    return STATUS_OF.get(error.code, 500)


def respond(
    request: Request, problem: Problem, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a problem as the answer to a request."""
    request.scope[CODE] = problem.code
    completed = problem.model_copy(
        update={
            "instance": request.url.path[:MAX_INSTANCE_CHARS],
            "request_id": request_id_of(request),
        }
    )
    sent = dict(headers or {})
    if problem.code in _TRY_AGAIN:
        sent["Retry-After"] = str(RETRY_AFTER_S)
    if problem.code == ErrorCode.UNAUTHENTICATED:
        sent["WWW-Authenticate"] = "Bearer"
    if problem.status == SLOW_STATUS:
        sent["Connection"] = "close"  # the gateway does not read the rest of the request
    return Response(
        completed.model_dump_json(
            exclude_none=True, exclude=None if completed.errors else {"errors"}
        ),
        status_code=problem.status,
        headers=sent,
        media_type=PROBLEM_MEDIA_TYPE,
    )


def answer_to(request: Request, error: ModelyardError | ClientDisconnect) -> Response:
    """Return the answer to a request that an endpoint has refused."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=400)  # no one reads it: the client has disconnected
    close = isinstance(error, TooManyFailuresError) or (
        isinstance(error, UnauthenticatedError) and error.close_connection
    )
    return respond(request, problem_of(error), {"Connection": "close"} if close else None)


def install(app: FastAPI, allowed: AllowedMethods) -> None:
    """Answer every error of the app with a problem document."""

    async def on_modelyard_error(request: Request, error: Exception) -> Response:
        return answer_to(request, _expect(ModelyardError, error))

    async def on_invalid_parameters(request: Request, error: Exception) -> Response:
        return _refused_parameters(request, _expect(RequestValidationError, error).errors())

    async def on_router_error(request: Request, error: Exception) -> Response:
        return _refused_by_router(request, _expect(HTTPException, error), allowed)

    async def on_disconnect(request: Request, error: Exception) -> Response:
        return answer_to(request, _expect(ClientDisconnect, error))

    app.add_exception_handler(ModelyardError, on_modelyard_error)
    app.add_exception_handler(RequestValidationError, on_invalid_parameters)
    app.add_exception_handler(HTTPException, on_router_error)
    app.add_exception_handler(ClientDisconnect, on_disconnect)


def internal_problem(request: Request) -> Response:
    """Return the answer to an unexpected error: it tells the client only the request id."""
    return respond(request, problem_of(ModelyardError(ErrorCode.INTERNAL)))


def _refused_parameters(request: Request, found: Sequence[Mapping[str, Any]]) -> Response:
    where = {one["loc"][0] for one in found}
    if where == {"path"} and request.method != "PUT":
        # The id in the path is not well-formed, so nothing can exist at this address.
        detail = f"There is nothing at this address: {found[0]['loc'][-1]} {message_of(found[0])}."
        return respond(request, problem_of(ModelyardError(ErrorCode.NOT_FOUND, detail)))
    faults = [
        Fault(
            parameter=str(one["loc"][-1])[:MAX_POINTER_CHARS],
            message=message_of(one),
        )
        for one in found[:MAX_LISTED_ERRORS]
    ]
    return respond(request, problem_of(FaultyRequestError(faults)))


def _refused_by_router(request: Request, error: HTTPException, allowed: AllowedMethods) -> Response:
    code = _CODE_OF_STATUS.get(error.status_code, ErrorCode.INTERNAL)
    begins = request.scope["path"] == "/" and code is ErrorCode.NOT_FOUND
    detail = "The API is below /v1, and is described at /docs." if begins else None
    problem = problem_of(ModelyardError(code, detail))
    problem = problem.model_copy(update={"status": error.status_code})
    headers = dict(error.headers or {})
    if code is ErrorCode.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(allowed.of(request.scope["path"]))
    return respond(request, problem, headers)


def _expect(kind: type[E], error: Exception) -> E:
    if not isinstance(error, kind):
        raise TypeError(f"a handler of {kind.__name__} was given {error!r}")
    return error
