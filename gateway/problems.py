"""Errors as clients see them: RFC 9457 documents with a stable code."""

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
from gateway.routes.allowed_methods import allowed_methods
from modelyard.contract import answers
from modelyard.contract.access.scopes import Scope
from modelyard.contract.answers import PROBLEM_MEDIA_TYPE, Fault, Problem
from modelyard.contract.errors import SENTENCES, ErrorCode, InvalidRequestError, ModelyardError
from modelyard.contract.validation import (
    MAX_LISTED_ERRORS,
    MAX_MESSAGE_CHARS,
    MAX_POINTER_CHARS,
    error_list,
)

log = structlog.get_logger(__name__)

RETRY_AFTER_S = 1

MAX_ERRORS_BYTES = 12 << 10
"""Of the list in one problem; with everything else a document has at most 16 KiB."""
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
        ErrorCode.UNAUTHENTICATED: 401,
        ErrorCode.TOO_MANY_FAILURES: 429,
        ErrorCode.FORBIDDEN: 403,
        ErrorCode.GRANT_TOO_LARGE: 403,
        ErrorCode.CROSS_SITE: 403,
        ErrorCode.MISDIRECTED: 421,
        ErrorCode.NOT_FOUND: 404,
        ErrorCode.METHOD_NOT_ALLOWED: 405,
        ErrorCode.RESULT_NOT_READY: 409,
        ErrorCode.NO_RESULT: 404,
        ErrorCode.ALREADY_ENDED: 409,
        ErrorCode.NOT_RETRYABLE: 409,
        ErrorCode.NOT_REPLAYABLE: 409,
        ErrorCode.UNAVAILABLE: 503,
        ErrorCode.INTERNAL: 500,
    },
)
"""The HTTP status of each code that the gateway answers with."""

_TRY_AGAIN = frozenset(
    {ErrorCode.UNAVAILABLE, ErrorCode.RESULT_NOT_READY, ErrorCode.TOO_MANY_FAILURES}
)
"""Answers with `Retry-After`."""

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
    """A request that does not follow its schema, with every place where it does not."""

    def __init__(
        self, faults: Sequence[Fault], code: ErrorCode = ErrorCode.INVALID_REQUEST
    ) -> None:
        self.faults = tuple(faults[:MAX_LISTED_ERRORS])
        first = self.faults[0]
        where = (first.pointer or "").lstrip("/") or first.parameter or first.header
        super().__init__(code, f"{f'`{where}`: ' if where else ''}{first.message}")


class SlowRequestError(InvalidRequestError):
    """A request that was not there in time; told with 408, for it may be sent again."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.INVALID_REQUEST, message)


class UnauthenticatedError(ModelyardError):
    """Nobody known asks; answered with 401 and `WWW-Authenticate`."""

    def __init__(self, message: str, *, hang_up: bool = False) -> None:
        super().__init__(ErrorCode.UNAUTHENTICATED, message)
        self.hang_up = hang_up
        """True if the connection should be closed after the answer."""


class TooManyFailuresError(ModelyardError):
    """The key was not looked up: too many failures of its sender's address are held back."""

    def __init__(self) -> None:
        super().__init__(
            ErrorCode.TOO_MANY_FAILURES,
            "Too many requests with invalid API keys come from your address, so this gateway did "
            "not look up yours. If it is valid, try again in a few seconds.",
        )


class ForbiddenError(ModelyardError):
    """Whoever asks is known, and may not do this."""

    def __init__(self, *any_of: Scope) -> None:
        needed = " or ".join(any_of)
        super().__init__(
            ErrorCode.FORBIDDEN, f"It takes the scope {needed}, which the API key does not have."
        )


def faults_of(error: ValidationError, *, under: str = "") -> list[Fault]:
    """Return what pydantic found, as JSON pointers under the pointer `under`; no value of it."""
    return [
        Fault(
            pointer=(under + found["pointer"])[:MAX_POINTER_CHARS],
            message=found["message"],
        )
        for found in error_list(error)
    ]


def problem_of(error: ModelyardError) -> Problem:
    """Return the document that tells a client of an error."""
    return answers.problem(
        error.code,
        SENTENCES[error.code],
        _status_of(error),
        error.message[:MAX_DETAIL_CHARS],
        errors=_as_many_as_fit(error.faults) if isinstance(error, FaultyRequestError) else (),
    )


def bytes_of(faults: Iterable[Fault]) -> int:
    """Return about how many bytes a list of faults takes in an answer; never too few."""
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
    told = problem.model_copy(
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
        sent["Connection"] = "close"  # nobody waits for the rest
    return Response(
        told.model_dump_json(exclude_none=True, exclude=None if told.errors else {"errors"}),
        status_code=problem.status,
        headers=sent,
        media_type=PROBLEM_MEDIA_TYPE,
    )


def install(app: FastAPI) -> None:
    """Make every error of the app a problem document."""

    async def ours(request: Request, error: Exception) -> Response:
        known = _expect(ModelyardError, error)
        hang_up = isinstance(known, TooManyFailuresError) or (
            isinstance(known, UnauthenticatedError) and known.hang_up
        )
        return respond(request, problem_of(known), {"Connection": "close"} if hang_up else None)

    async def parameters(request: Request, error: Exception) -> Response:
        return _refused_parameters(request, _expect(RequestValidationError, error).errors())

    async def protocol(request: Request, error: Exception) -> Response:
        return _refused_by_router(request, _expect(HTTPException, error))

    async def gone(_request: Request, _error: Exception) -> Response:
        return Response(status_code=400)  # nobody reads it: the client hung up

    app.add_exception_handler(ModelyardError, ours)
    app.add_exception_handler(RequestValidationError, parameters)
    app.add_exception_handler(HTTPException, protocol)
    app.add_exception_handler(ClientDisconnect, gone)


def internal_problem(request: Request) -> Response:
    """Return what a client learns of a fault of ours: the request id, and nothing else."""
    return respond(request, problem_of(ModelyardError(ErrorCode.INTERNAL)))


def _refused_parameters(request: Request, found: Sequence[Mapping[str, Any]]) -> Response:
    where = {one["loc"][0] for one in found}
    if where == {"path"} and request.method != "PUT":
        # No such id can exist, so there is nothing at this address.
        return respond(request, problem_of(ModelyardError(ErrorCode.NOT_FOUND)))
    faults = [
        Fault(
            parameter=str(one["loc"][-1])[:MAX_POINTER_CHARS],
            message=str(one["msg"]).removeprefix("Value error, ")[:MAX_MESSAGE_CHARS],
        )
        for one in found[:MAX_LISTED_ERRORS]
    ]
    return respond(request, problem_of(FaultyRequestError(faults)))


def _refused_by_router(request: Request, error: HTTPException) -> Response:
    code = _CODE_OF_STATUS.get(error.status_code, ErrorCode.INTERNAL)
    problem = problem_of(ModelyardError(code)).model_copy(update={"status": error.status_code})
    headers = dict(error.headers or {})
    if code is ErrorCode.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(allowed_methods(request.app, request.url.path))
    return respond(request, problem, headers)


def _expect(kind: type[E], error: Exception) -> E:
    if not isinstance(error, kind):
        raise TypeError(f"a handler of {kind.__name__} was given {error!r}")
    return error
