"""One call of the HTTP API: how often it is sent, and how its last answer is read; no I/O."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from modelyard.contract.answers import Fault
from modelyard.contract.errors import ErrorCode

T = TypeVar("T")

Headers = Mapping[str, str]

ATTEMPTS = 5
GATEWAY_PATIENCE_S = 120.0
"""Seconds that a wait for an operation goes on while no gateway answers."""
OUTAGE_PAUSE_S = 1.0
FIRST_PAUSE_S = 0.2
MOST_PAUSE_S = 5.0

_TRY_AGAIN = frozenset({429, 502, 503, 504})
_NOT_FOUND = 404
_NEVER_ARRIVED = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


class ApiError(Exception):
    """The gateway refused a request; `code` is stable, `detail` is for people."""

    def __init__(
        self,
        code: str,
        status: int | None,
        detail: str,
        *,
        faults: Sequence[Fault] = (),
        request_id: str | None = None,
    ) -> None:
        self.code = code
        self.status = status
        """The HTTP status; None if no answer came."""
        self.detail = detail
        self.faults = tuple(faults)
        self.request_id = request_id
        super().__init__(f"{code}: {detail}")


class ServiceUnavailableError(ApiError):
    """The gateway did not answer any attempt, or answered each with "try again later"."""


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request to the API, and the function that reads its answer."""

    method: str
    path: str
    read: Callable[[httpx2.Response], T]
    body: str | bytes | None = None
    """Text is JSON."""
    headers: Headers = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    patience_s: float = 0.0
    """Seconds that the gateway may hold the answer on purpose."""
    repeatable: bool = True
    """False: it is sent again only if the gateway can't have received it."""
    deletes: bool = False
    """True: an answer of 404 to a repetition is success, because the first call has deleted it."""

    def arguments(self, timeout_s: float) -> dict[str, Any]:
        """Return the arguments of httpx's `request`."""
        headers = dict(self.headers)
        if isinstance(self.body, str):
            headers["Content-Type"] = "application/json"
        return {
            "method": self.method,
            "url": self.path,
            "content": self.body.encode() if isinstance(self.body, str) else self.body,
            "headers": headers,
            "params": dict(self.params),
            "timeout": httpx2.Timeout(timeout_s, read=timeout_s + self.patience_s),
        }


class CallAttempts(Generic[T]):
    """Decides how often one call is sent, how long to pause, and what its last answer means."""

    def __init__(self, call: Call[T], most: int) -> None:
        self._call = call
        self._left = most
        self._pause_s = FIRST_PAUSE_S
        self._may_be_done = False

    def after_error(self, error: httpx2.RequestError) -> float:
        """Return the seconds to wait; raises `ServiceUnavailableError` after the last attempt."""
        arrived = not isinstance(error, _NEVER_ARRIVED)
        self._left -= 1
        if self._left <= 0 or (arrived and not self._call.repeatable):
            reason = str(error) or type(error).__name__
            raise ServiceUnavailableError(
                ErrorCode.UNAVAILABLE,
                None,
                f"The gateway{_place(error)} does not answer: {reason}",
            ) from error
        self._may_be_done |= arrived
        return self._next_pause()

    def after(self, response: httpx2.Response) -> float | None:
        """Return the seconds to wait; None if this answer is the final one."""
        if response.status_code not in _TRY_AGAIN or not self._call.repeatable:
            return None
        self._left -= 1
        if self._left <= 0:
            return None
        self._may_be_done = True
        asked = response.headers.get("Retry-After", "")
        least = float(asked) if asked.isdecimal() else 0.0
        return min(max(self._next_pause(), least), MOST_PAUSE_S)

    def answer(self, response: httpx2.Response) -> T:
        """Read the final answer; raises `ApiError` if the gateway refused the request."""
        deleted = self._call.deletes and self._may_be_done and response.status_code == _NOT_FOUND
        try:
            if response.is_success or deleted:
                return self._call.read(response)
        except ValueError as error:
            detail = "The answer does not come from a gateway."
            raise ApiError(ErrorCode.INTERNAL, response.status_code, detail) from error
        raise _refusal(response)

    def _next_pause(self) -> float:
        pause = self._pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load
        self._pause_s = min(self._pause_s * 2, MOST_PAUSE_S)
        return pause


class Outage:
    """Time without an answer of any gateway, during a wait that outlives a restart."""

    def __init__(self) -> None:
        self._since: float | None = None

    @property
    def lasts(self) -> bool:
        """Whether the last call got no answer."""
        return self._since is not None

    def pause_after(self, error: ServiceUnavailableError, deadline: float | None) -> float:
        """Return the seconds to wait before the next call.

        Raises `error` after `GATEWAY_PATIENCE_S`, and at the deadline of the wait (monotonic).
        """
        now = time.monotonic()
        if self._since is None:
            self._since = now
        over = deadline is not None and now >= deadline
        if over or now - self._since > GATEWAY_PATIENCE_S:
            raise error
        return OUTAGE_PAUSE_S

    def ends(self) -> None:
        """Note an answer."""
        self._since = None


def _place(error: httpx2.RequestError) -> str:
    """Return where the gateway should have been, without a password that the URL may hold."""
    try:
        url = error.request.url
    except RuntimeError:  # the request was never made
        return ""
    port = f":{url.port}" if url.port else ""
    host = f"[{url.host}]" if ":" in url.host else url.host
    return f" at {url.scheme}://{host}{port}"


class _ProblemFields(BaseModel):
    """The fields of a problem document that the client reads.

    `code` is any text, because a newer gateway may have new codes.
    """

    code: str
    detail: str
    errors: tuple[Fault, ...] = ()
    request_id: str | None = None


def _refusal(response: httpx2.Response) -> ApiError:
    status = response.status_code
    kind = ServiceUnavailableError if status in _TRY_AGAIN else ApiError
    try:
        problem = _ProblemFields.model_validate_json(response.content)
    except ValidationError:
        code = ErrorCode.UNAVAILABLE if kind is ServiceUnavailableError else ErrorCode.INTERNAL
        detail = f"The answer was {status}, and not in the form of a gateway's answers."
        return kind(code, status, detail)
    return kind(
        problem.code,
        status,
        problem.detail,
        faults=problem.errors,
        request_id=problem.request_id,
    )
