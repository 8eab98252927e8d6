"""Every call of the HTTP API as a value; no I/O.

`modelyard.client.sync` and `modelyard.client.aio` send them. A call may be sent again: repeating a
read, put, delete, cancel, cordon or drain changes nothing more, and submissions and retries have an
idempotency key. The exceptions are replays and new API keys, where each call has an effect of its
own.
"""

import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote, urlsplit

import httpx2
from pydantic import BaseModel

from modelyard.client.retry import ApiError, Call, Headers
from modelyard.contract.access.api_keys import ApiKeyList, ApiKeyView, CreatedApiKey
from modelyard.contract.access.masked_urls import masked_url
from modelyard.contract.access.scopes import Role, Scope
from modelyard.contract.answers import (
    Accepted,
    BatchAnswer,
    BatchItem,
    DatasetList,
    DeadLetterPage,
    DeadLetterSummary,
    DeadLetterView,
    Fault,
    FootprintList,
    HostList,
    InputView,
    JobPage,
    ModelList,
    OperationPage,
)
from modelyard.contract.catalog.rules import AS_RECORDED
from modelyard.contract.content.media_types import is_json, media_type_of
from modelyard.contract.errors import ErrorCode
from modelyard.contract.messages import KEY_PATTERN, JobRequest
from modelyard.contract.states import OperationState, Verb
from modelyard.contract.strict_json import JsonValue, dump_json
from modelyard.contract.views import (
    DryRun,
    Explanation,
    FootprintView,
    HostView,
    JobView,
    OperationView,
)

M = TypeVar("M", bound=BaseModel)
NamedList = TypeVar("NamedList", HostList, ModelList, DatasetList)
"""A page of a list by name."""

Request = JobRequest | Mapping[str, JsonValue]
LONGEST_POLL_S = 30.0
"""How long one request waits at the gateway; shorter than the timeouts of most proxies."""
LARGEST_PAGE = 200
"""Entries that the gateway gives at once; a list by name is read in such pages."""


class OperationFailed(Exception):  # noqa: N818 - named as the state that it reports
    """The operation that a caller waited for did not succeed; `operation` is its final view."""

    def __init__(self, operation: OperationView) -> None:
        self.operation = operation
        reason = f": {operation.error.code}: {operation.error.message}" if operation.error else ""
        super().__init__(f"operation {operation.operation_id} ended {operation.state}{reason}")


class NotJsonError(Exception):
    """A result is not JSON, or can't be read as the JSON it is said to be; `content` has it."""

    def __init__(self, content: "Content") -> None:
        self.content = content
        said = is_json(content.media_type)
        is_no_json = "can't be read as JSON, though it is" if said else "is no JSON but"
        super().__init__(
            f"the result {is_no_json} {content.media_type}, {len(content.content)} bytes; "
            "`content` reads it"
        )


@dataclass(frozen=True, slots=True)
class Content:
    """A result with its media type."""

    media_type: str
    content: bytes

    def json(self) -> JsonValue:
        """Return it as JSON; raises `NotJsonError` if it is something else.

        The gateway stores large results as the model gave them: what is said to be JSON may be
        none, or be nested deeper than Python can read.
        """
        if not is_json(self.media_type):
            raise NotJsonError(self)
        try:
            value: JsonValue = json.loads(self.content)
        except (ValueError, RecursionError) as error:
            raise NotJsonError(self) from error
        return value


@dataclass(frozen=True, slots=True)
class Stored(Generic[M]):
    """An entry of the catalog as it is stored, with the tag of this version of it."""

    entry: M
    etag: str
    """What `if_match` takes, to change the entry only if nobody else has."""


class InferenceOptions(TypedDict, total=False):
    """What an inference on a model may have besides; see `InferenceRequest` for the fields."""

    idempotency_key: str | None
    """Repeating a submission with the same key is the same operation; random if not given."""
    priority: int
    timeout_s: float
    queue_timeout_s: float
    metadata: dict[str, str]
    input_id: str


class RequestOptions(InferenceOptions, total=False):
    """What every request on a job may have besides; see `JobRequest` for the fields."""

    container_id: str


class PageFilters(TypedDict, total=False):
    """Options of every list."""

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


class DeadLetterFilters(PageFilters, total=False):
    """Which dead letters to list."""

    reason: str | None
    queue: str | None


def checked_url(url: str) -> str:
    """Return the URL of a gateway; raises `ValueError` if it can't be one.

    The message repeats it without its password.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        usable = usable and not (parts.query or parts.fragment)
        httpx2.URL(url)
    except (ValueError, httpx2.InvalidURL):  # the host, its brackets or the port are not valid
        usable = False
    if not usable:
        raise ValueError(f"{masked_url(url)!r} is not a URL such as http://127.0.0.1:8080")
    return url


def succeeded(operation: OperationView) -> OperationView:
    """Return the operation if it has SUCCEEDED; raises `OperationFailed` for any other end."""
    if operation.state is not OperationState.SUCCEEDED:
        raise OperationFailed(operation)
    return operation


def id_of(operation: "str | Accepted | OperationView") -> str:
    """Return the id of an operation that is given as an id, an acceptance or a view."""
    return operation if isinstance(operation, str) else operation.operation_id


def pause_after_poll(took_s: float, asked_s: float) -> float:
    """Return the seconds to wait before the next poll: 0 if the gateway held the last one."""
    return 0.0 if took_s >= min(asked_s, LONGEST_POLL_S) / 2 else 1.0


# --- the calls ---


def request(
    verb: Verb, job_id: str, options: Mapping[str, JsonValue], **given: JsonValue
) -> dict[str, JsonValue]:
    """Return a request as JSON, without the fields that are None."""
    fields = {name: value for name, value in given.items() if value is not None}
    return {"job_id": job_id, "operation_type": verb.value, **fields, **options}


def submit(request: Request, key: str | None) -> Call[Accepted]:
    """Submit one request; if the caller gives no key, it gets a random one."""
    return Call("POST", "/v1/jobs", _reader(Accepted), body=_dumped(request), headers=_key(key))


def ask(verb: Verb, job_id: str, options: InferenceOptions, **given: JsonValue) -> Call[Accepted]:
    """Submit a request for a verb, with the idempotency key among the options."""
    fields, key = _split(options)
    return submit(request(verb, job_id, fields, **given), key)


def infer_model(
    model: str,
    dataset: str | None,
    options: InferenceOptions,
    input: JsonValue,  # noqa: A002 - the name in the API
) -> Call[Accepted]:
    """Submit an inference on any job of a model."""
    fields, key = _split(options)
    given = {} if input is None else {"input": input}
    return Call(
        "POST",
        f"/v1/models/{_quoted(model)}/infer",
        _reader(Accepted),
        body=_dumped({**given, **fields}),
        params={} if dataset is None else {"dataset": _sendable(dataset, "the dataset")},
        headers=_key(key),
    )


def dry_run(request: Request, key: str | None) -> Call[DryRun]:
    """Ask what would become of a request; it gets no key unless the caller gives one."""
    headers = {} if key is None else _key(key)
    params, body = {"dry_run": "true"}, _dumped(request)
    return Call("POST", "/v1/jobs", _reader(DryRun), params=params, body=body, headers=headers)


def submit_batch(requests: Sequence[Request], key: str | None) -> Call[tuple[BatchItem, ...]]:
    """Submit up to 1,000 requests; the gateway answers each of them separately."""
    body = "[" + ",".join(_dumped(one) for one in requests) + "]"
    read = _reader(BatchAnswer)
    return Call("POST", "/v1/jobs/batch", lambda r: read(r).results, body=body, headers=_key(key))


def operation(operation_id: str, wait_s: float = 0.0) -> Call[OperationView]:
    """Read an operation, after waiting for its end for up to `wait_s` seconds."""
    params = {"wait": f"{wait_s:.3f}"} if wait_s > 0 else {}
    path = f"/v1/operations/{_quoted(operation_id)}"
    return Call("GET", path, _reader(OperationView), params=params, patience_s=wait_s)


def explain(operation_id: str) -> Call[Explanation]:
    """Read why an operation has not started."""
    return Call("GET", f"/v1/operations/{_quoted(operation_id)}/explain", _reader(Explanation))


def cancel(operation_id: str, wait_s: float = 0.0) -> Call[OperationView]:
    """Ask to cancel an operation, and wait for its end for up to `wait_s` seconds."""
    params = {"wait": f"{wait_s:.3f}"} if wait_s > 0 else {}
    path = f"/v1/operations/{_quoted(operation_id)}/cancel"
    return Call("POST", path, _reader(OperationView), params=params, patience_s=wait_s)


def retry(operation_id: str, key: str | None) -> Call[Accepted]:
    """Submit the request of an operation again, with a random key if the caller gives none."""
    path = f"/v1/operations/{_quoted(operation_id)}/retry"
    return Call("POST", path, _reader(Accepted), headers=_key(key))


def upload(content: bytes, content_type: str) -> Call[InputView]:
    """Upload an input. Sent twice it is two inputs, of which one is removed after a day."""
    if not content_type.isascii():
        raise _refused("The media type of an input is ASCII, such as image/png.")
    headers = {"Content-Type": content_type}
    return Call("POST", "/v1/inputs", _reader(InputView), body=content, headers=headers)


def result(operation_id: str) -> Call[JsonValue]:
    """Read an operation's result, which has to be JSON."""
    return Call("GET", _result_path(operation_id), lambda r: _content(r).json())


def content(operation_id: str) -> Call[Content]:
    """Read an operation's result, whatever it is."""
    return Call("GET", _result_path(operation_id), _content)


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
    """Cordon or uncordon a host."""
    return Call("POST", f"/v1/hosts/{_quoted(host_id)}/{action}", _reader(HostView))


def drain(host_id: str, *, move: bool, deadline_s: float | None) -> Call[HostView]:
    """Empty a host."""
    params = {"move": "true" if move else "false"}
    if deadline_s is not None:
        params["deadline_s"] = str(deadline_s)
    return Call("POST", f"/v1/hosts/{_quoted(host_id)}/drain", _reader(HostView), params=params)


def dead_letters(filters: DeadLetterFilters) -> Call[DeadLetterPage]:
    """List dead letters."""
    return Call("GET", "/v1/dead-letters", _reader(DeadLetterPage), params=_params(filters))


def dead_letter(dead_letter_id: str) -> Call[DeadLetterView]:
    """Read a dead letter."""
    return Call("GET", f"/v1/dead-letters/{_quoted(dead_letter_id)}", _reader(DeadLetterView))


def replay_dead_letter(dead_letter_id: str) -> Call[DeadLetterSummary]:
    """Publish a dead letter again."""
    path = f"/v1/dead-letters/{_quoted(dead_letter_id)}/replay"
    return Call("POST", path, _reader(DeadLetterSummary), repeatable=False)


def delete_dead_letter(dead_letter_id: str) -> Call[None]:
    """Delete a dead letter."""
    path = f"/v1/dead-letters/{_quoted(dead_letter_id)}"
    return Call("DELETE", path, lambda _: None, deletes=True)


def create_key(
    name: str,
    *,
    role: Role | None,
    scopes: Sequence[Scope] | None,
    expires_in_s: float | None,
) -> Call[CreatedApiKey]:
    """Create an API key."""
    body: dict[str, JsonValue] = {"name": name}
    if role is not None:
        body["role"] = role
    if scopes is not None:
        body["scopes"] = list(scopes)
    if expires_in_s is not None:
        body["expires_in_s"] = expires_in_s
    read = _reader(CreatedApiKey)
    return Call("POST", "/v1/keys", read, body=_dumped(body), repeatable=False)


def keys() -> Call[tuple[ApiKeyView, ...]]:
    """List API keys."""
    read = _reader(ApiKeyList)
    return Call("GET", "/v1/keys", lambda r: read(r).keys)


def revoke_key(key_id: str) -> Call[ApiKeyView]:
    """Revoke an API key."""
    return Call("DELETE", f"/v1/keys/{_quoted(key_id)}", _reader(ApiKeyView))


def hosts(cursor: str | None) -> Call[HostList]:
    """List a page of hosts."""
    return Call("GET", "/v1/hosts", _reader(HostList), params=_page(cursor))


def models(cursor: str | None) -> Call[ModelList]:
    """List a page of the models of the catalog."""
    return Call("GET", "/v1/models", _reader(ModelList), params=_page(cursor))


def footprints(model: str) -> Call[tuple[FootprintView, ...]]:
    """Read what a model was measured to take."""
    read = _reader(FootprintList)
    path = f"/v1/models/{_quoted(model)}/footprints"
    return Call("GET", path, lambda r: read(r).footprints)


def datasets(cursor: str | None) -> Call[DatasetList]:
    """List a page of the datasets of the catalog."""
    return Call("GET", "/v1/datasets", _reader(DatasetList), params=_page(cursor))


def entry(collection: str, kind: type[M], name: str) -> Call[M]:
    """Read a catalog entry."""
    return Call("GET", f"/v1/{collection}/{_quoted(name)}", _reader(kind))


def stored_entry(collection: str, kind: type[M], name: str) -> Call[Stored[M]]:
    """Read a catalog entry with its tag."""
    read = _reader(kind)
    return Call(
        "GET",
        f"/v1/{collection}/{_quoted(name)}",
        lambda response: Stored(read(response), response.headers.get("ETag", "")),
    )


def put_entry(
    collection: str, kind: type[M], spec: M | Mapping[str, JsonValue], if_match: str | None = None
) -> Call[M]:
    """Store a catalog entry under its name; with `if_match` only in place of that version.

    With `if_match` it is not sent again: if it has succeeded, the version is another one.
    """
    name = spec.get("name", "") if isinstance(spec, Mapping) else getattr(spec, "name", "")
    path = f"/v1/{collection}/{_quoted(str(name))}"
    # What was given counts, even where it is the default.
    body = spec.model_dump_json(exclude_unset=True) if isinstance(spec, BaseModel) else None
    return Call(
        "PUT",
        path,
        _reader(kind),
        body=body or _dumped(spec),
        headers=_precondition(if_match),
        repeatable=if_match is None,
    )


def delete_entry(collection: str, name: str, if_match: str | None = None) -> Call[None]:
    """Delete what a collection has under a name; with `if_match` as `put_entry`."""
    return Call(
        "DELETE",
        f"/v1/{collection}/{_quoted(name)}",
        lambda _: None,
        headers=_precondition(if_match),
        repeatable=if_match is None,
        deletes=True,
    )


def _precondition(if_match: str | None) -> Headers:
    if if_match is None:
        return {}
    if not re.fullmatch(r"[ -~]*", if_match):
        raise _refused('An entity tag is printable ASCII, such as "0a1b".')
    return {"If-Match": if_match}


def _result_path(operation_id: str) -> str:
    return f"/v1/operations/{_quoted(operation_id)}/result"


def _content(response: httpx2.Response) -> Content:
    return Content(media_type_of(response.headers.get("content-type", "")), response.content)


def _reader(kind: type[M]) -> Callable[[httpx2.Response], M]:
    # A gateway of another version may have other rules, and fields that this client does not know.
    return lambda response: kind.model_validate_json(
        response.content, context=AS_RECORDED, extra="ignore"
    )


def _dumped(value: BaseModel | Mapping[str, JsonValue]) -> str:
    """Return a body as JSON; raises `ApiError` for what JSON does not have."""
    try:
        if isinstance(value, BaseModel):
            return value.model_dump_json(exclude_defaults=True)
        return _sendable(dump_json(dict(value)), "a text in the request")
    except ValueError as error:  # NaN, for example
        raise _refused(f"The request can't be sent as JSON: {error}.") from error


def _split(options: InferenceOptions) -> tuple[dict[str, JsonValue], str | None]:
    """Return the fields of a request among the options, and its idempotency key."""
    fields: dict[str, Any] = {**options}
    key = fields.pop("idempotency_key", None)
    return fields, key


def _key(key: str | None) -> Headers:
    if key is None:
        return {"Idempotency-Key": uuid.uuid4().hex}
    if re.fullmatch(KEY_PATTERN, key) is None:
        message = "must be 1 to 255 printable ASCII characters without spaces"
        fault = Fault(header="Idempotency-Key", message=message)
        raise _refused(f"`Idempotency-Key`: {message}", fault)
    return {"Idempotency-Key": key}


def _params(filters: PageFilters) -> dict[str, str]:
    return {
        name: _sendable(str(value), name) for name, value in filters.items() if value is not None
    }


def _page(cursor: str | None) -> dict[str, str]:
    """Return the parameters of a page of a list that is read whole."""
    return {"limit": str(LARGEST_PAGE)} | ({} if cursor is None else {"cursor": cursor})


def _quoted(name: str) -> str:
    if not name:
        raise _refused("A name or an id is empty.")
    return quote(_sendable(name, "a name or an id"), safe="")


def _sendable(text: str, what: str) -> str:
    """Return a text; raises `ApiError` if it is not Unicode, as an argument of a program may be."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _refused(f"The request can't be sent: {what} is not valid UTF-8.") from error
    return text


def _refused(detail: str, *faults: Fault) -> ApiError:
    """Return the error for what no gateway would accept, and what is not sent for that reason."""
    return ApiError(ErrorCode.INVALID_REQUEST, None, detail, faults=faults)
