"""Every call of the HTTP API as a value, and what its answer means; no I/O.

`modelyard.client` and `modelyard.async_client` send them. A call may always be sent again: reads,
puts and deletes by their nature, submissions because each has an idempotency key.
"""

import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote, urlsplit

import httpx2
from pydantic import BaseModel, ValidationError

from modelyard.contract.answers import (
    Accepted,
    BatchAnswer,
    BatchItem,
    DatasetList,
    Fault,
    HostList,
    JobPage,
    ModelList,
    OperationPage,
    Problem,
)
from modelyard.contract.catalog import DatasetSpec, ModelSpec
from modelyard.contract.errors import ErrorCode
from modelyard.contract.messages import HostView, JobRequest, JobView, OperationView
from modelyard.contract.states import OperationState, Verb
from modelyard.contract.strict_json import JsonValue, dump_json

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

Request = JobRequest | Mapping[str, JsonValue]
Headers = Mapping[str, str]

ATTEMPTS = 5
FIRST_PAUSE_S = 0.2
MOST_PAUSE_S = 5.0
LONGEST_POLL_S = 30.0
"""How long one request waits on the gateway; shorter than most proxies' patience."""

_TRY_AGAIN = frozenset({429, 502, 503, 504})


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
        """The HTTP status, null if no answer came at all."""
        self.detail = detail
        self.faults = tuple(faults)
        self.request_id = request_id
        super().__init__(f"{code}: {detail}")


class ServiceUnavailableError(ApiError):
    """The gateway did not answer, or not now, and went on so through all attempts."""


class OperationFailed(Exception):  # noqa: N818 - named as the state that it reports
    """An operation that was waited for ended, and not in SUCCEEDED; `operation` says how."""

    def __init__(self, operation: OperationView) -> None:
        self.operation = operation
        reason = f": {operation.error.code}: {operation.error.message}" if operation.error else ""
        super().__init__(f"operation {operation.operation_id} ended {operation.state}{reason}")


class RequestOptions(TypedDict, total=False):
    """What any request may carry; see `JobRequest`."""

    container_id: str
    priority: int
    timeout_s: float
    queue_timeout_s: float
    metadata: dict[str, str]


class PageFilters(TypedDict, total=False):
    """What every list takes."""

    limit: int
    cursor: str | None


class OperationFilters(PageFilters, total=False):
    """Which operations to list."""

    state: str | None
    job_id: str | None
    model: str | None
    operation_type: str | None
    host_id: str | None


class JobFilters(PageFilters, total=False):
    """Which jobs to list."""

    state: str | None
    model: str | None
    host_id: str | None


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request to the API and the reading of its answer."""

    method: str
    path: str
    read: Callable[[httpx2.Response], T]
    body: str | None = None
    headers: Headers = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    patience_s: float = 0.0
    """Seconds that the gateway may hold the answer on purpose."""

    def arguments(self, timeout_s: float) -> dict[str, Any]:
        """Return the arguments of httpx's `request`."""
        headers = dict(self.headers)
        if self.body is not None:
            headers["Content-Type"] = "application/json"
        return {
            "method": self.method,
            "url": self.path,
            "content": self.body.encode() if self.body is not None else None,
            "headers": headers,
            "params": dict(self.params),
            "timeout": httpx2.Timeout(timeout_s, read=timeout_s + self.patience_s),
        }


class Attempts:
    """How often one call is sent, and the pauses in between."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._pause_s = FIRST_PAUSE_S

    def after_error(self, error: httpx2.TransportError) -> float:
        """Return the seconds to wait; raises `ServiceUnavailableError` if it was the last one."""
        self._left -= 1
        if self._left <= 0:
            reason = str(error) or type(error).__name__
            raise ServiceUnavailableError(
                ErrorCode.UNAVAILABLE, None, f"The gateway does not answer: {reason}"
            ) from error
        return self._next_pause()

    def after(self, response: httpx2.Response) -> float | None:
        """Return the seconds to wait, null if this answer is the final one."""
        if response.status_code not in _TRY_AGAIN:
            return None
        self._left -= 1
        if self._left <= 0:
            return None
        asked = response.headers.get("Retry-After", "")
        least = float(asked) if asked.isdecimal() else 0.0
        return min(max(self._next_pause(), least), MOST_PAUSE_S)

    def _next_pause(self) -> float:
        pause = self._pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load
        self._pause_s = min(self._pause_s * 2, MOST_PAUSE_S)
        return pause


def checked_url(url: str) -> str:
    """Return the URL of a gateway; raises `ValueError` if it can't be one."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not a URL such as http://127.0.0.1:8080")
    return url


def answer_of(call: Call[T], response: httpx2.Response) -> T:
    """Return what an answer means; raises `ApiError` for a refusal."""
    if response.is_success:
        return call.read(response)
    kind = ServiceUnavailableError if response.status_code in _TRY_AGAIN else ApiError
    try:
        told = Problem.model_validate_json(response.content)
    except ValidationError:
        detail = f"The answer was {response.status_code} and no problem document."
        code = ErrorCode.UNAVAILABLE if kind is ServiceUnavailableError else ErrorCode.INTERNAL
        raise kind(code, response.status_code, detail) from None
    raise kind(
        told.code,
        response.status_code,
        told.detail,
        faults=told.errors,
        request_id=told.request_id,
    )


def succeeded(operation: OperationView) -> OperationView:
    """Return an operation that ended well; raises `OperationFailed` for any other end."""
    if operation.state is not OperationState.SUCCEEDED:
        raise OperationFailed(operation)
    return operation


def id_of(operation: "str | Accepted | OperationView") -> str:
    """Return the id of an operation that was given as itself or as what named it."""
    return operation if isinstance(operation, str) else operation.operation_id


def pause_after_poll(took_s: float, asked_s: float) -> float:
    """Return the seconds to wait before the next poll: none if the last one waited by itself."""
    return 0.0 if took_s >= min(asked_s, LONGEST_POLL_S) / 2 else 1.0


# --- the calls ---


def request(
    verb: Verb, job_id: str, options: RequestOptions, **given: JsonValue
) -> dict[str, JsonValue]:
    """Return a request as JSON; what is null is left out."""
    made = {name: value for name, value in given.items() if value is not None}
    return {"job_id": job_id, "operation_type": verb.value, **made, **options}


def submit(request: Request, key: str | None) -> Call[Accepted]:
    """Submit one request; without a key of the caller's it gets a new one."""
    return Call("POST", "/v1/jobs", _reader(Accepted), body=_dumped(request), headers=_key(key))


def submit_batch(requests: Sequence[Request], key: str | None) -> Call[tuple[BatchItem, ...]]:
    """Submit up to 1,000 requests, each answered on its own."""
    body = "[" + ",".join(_dumped(one) for one in requests) + "]"
    read = _reader(BatchAnswer)
    return Call("POST", "/v1/jobs/batch", lambda r: read(r).results, body=body, headers=_key(key))


def operation(operation_id: str, wait_s: float = 0.0) -> Call[OperationView]:
    """Read an operation, after waiting for its end for up to `wait_s` seconds."""
    params = {"wait": f"{wait_s:.3f}"} if wait_s > 0 else {}
    path = f"/v1/operations/{_quoted(operation_id)}"
    return Call("GET", path, _reader(OperationView), params=params, patience_s=wait_s)


def result(operation_id: str) -> Call[JsonValue]:
    """Read an operation's result."""
    return Call("GET", f"/v1/operations/{_quoted(operation_id)}/result", lambda r: r.json())


def operations(filters: OperationFilters) -> Call[OperationPage]:
    """List operations."""
    return Call("GET", "/v1/operations", _reader(OperationPage), params=_params(filters))


def job(job_id: str) -> Call[JobView]:
    """Read a job."""
    return Call("GET", f"/v1/jobs/{_quoted(job_id)}", _reader(JobView))


def jobs(filters: JobFilters) -> Call[JobPage]:
    """List jobs."""
    return Call("GET", "/v1/jobs", _reader(JobPage), params=_params(filters))


def host(host_id: str) -> Call[HostView]:
    """Read a host."""
    return Call("GET", f"/v1/hosts/{_quoted(host_id)}", _reader(HostView))


def admit(host_id: str, action: Literal["cordon", "uncordon"]) -> Call[HostView]:
    """Change what is allowed on a host."""
    return Call("POST", f"/v1/hosts/{_quoted(host_id)}/{action}", _reader(HostView))


def hosts() -> Call[tuple[HostView, ...]]:
    """List hosts."""
    read = _reader(HostList)
    return Call("GET", "/v1/hosts", lambda r: read(r).hosts)


def models() -> Call[tuple[ModelSpec, ...]]:
    """List the models of the catalog."""
    read = _reader(ModelList)
    return Call("GET", "/v1/models", lambda r: read(r).models)


def datasets() -> Call[tuple[DatasetSpec, ...]]:
    """List the datasets of the catalog."""
    read = _reader(DatasetList)
    return Call("GET", "/v1/datasets", lambda r: read(r).datasets)


def entry(shelf: str, kind: type[M], name: str) -> Call[M]:
    """Read a catalog entry."""
    return Call("GET", f"/v1/{shelf}/{_quoted(name)}", _reader(kind))


def put_entry(shelf: str, kind: type[M], spec: M | Mapping[str, JsonValue]) -> Call[M]:
    """Store a catalog entry under its name."""
    name = spec.get("name", "") if isinstance(spec, Mapping) else getattr(spec, "name", "")
    path = f"/v1/{shelf}/{_quoted(str(name))}"
    return Call("PUT", path, _reader(kind), body=_dumped(spec))


def delete_entry(shelf: str, name: str) -> Call[None]:
    """Delete a catalog entry."""
    return Call("DELETE", f"/v1/{shelf}/{_quoted(name)}", lambda _: None)


def _reader(kind: type[M]) -> Callable[[httpx2.Response], M]:
    return lambda response: kind.model_validate_json(response.content)


def _dumped(value: BaseModel | Mapping[str, JsonValue]) -> str:
    if isinstance(value, BaseModel):
        return value.model_dump_json(exclude_defaults=True)
    return dump_json(dict(value))


def _key(key: str | None) -> Headers:
    return {"Idempotency-Key": key or uuid.uuid4().hex}


def _params(filters: PageFilters) -> dict[str, str]:
    return {name: str(value) for name, value in filters.items() if value is not None}


def _quoted(name: str) -> str:
    return quote(name, safe="")
