"""Response bodies of the HTTP API other than the views: problems, acceptances, lists and pages."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from modelyard.contract.catalog.entries import DatasetSpec, ModelSpec
from modelyard.contract.errors import ErrorCode
from modelyard.contract.states import OperationState
from modelyard.contract.views import FootprintView, HostView, JobView, Links, OperationView

PROBLEM_MEDIA_TYPE = "application/problem+json"
PROBLEM_TYPE_PREFIX = "urn:modelyard:problem:"


class ApiAnswer(BaseModel):
    """What all response bodies share; a client ignores fields that a newer gateway has added."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", protected_namespaces=(), use_attribute_docstrings=True
    )


class Fault(ApiAnswer):
    """One thing that is wrong with a request. One of `pointer`, `parameter`, `header` says where.

    `pointer` is a JSON pointer (RFC 6901) into the body; `""` is the whole body.
    """

    pointer: str | None = None
    parameter: str | None = None
    header: str | None = None
    message: str


class Problem(ApiAnswer):
    """An error as an RFC 9457 problem document; `code` is its stable name."""

    type: str
    title: str
    status: int = Field(ge=400, le=599)
    detail: str
    instance: str | None = None
    code: ErrorCode
    errors: tuple[Fault, ...] = ()
    request_id: str | None = None
    """The id of this request in the gateway's logs, and in the header `X-Request-Id`."""
    parts: dict[str, str] | None = None
    """`/readyz` only: each service that the gateway depends on, and whether it answers."""


class Accepted(ApiAnswer):
    """The gateway has stored the request durably; read its operation at `links.self`."""

    operation_id: str
    job_id: str
    state: OperationState
    links: Links


class BatchItem(ApiAnswer):
    """The outcome of one request of a batch; `status` is what it would have got if sent alone."""

    status: int
    operation_id: str | None = None
    job_id: str | None = None
    state: OperationState | None = None
    links: Links | None = None
    problem: Problem | None = None


class BatchAnswer(ApiAnswer):
    """The answers to a batch, in the order of its requests."""

    results: tuple[BatchItem, ...]


class OperationPage(ApiAnswer):
    """Operations, newest first; `next` is the cursor of the next page, null at the end."""

    operations: tuple[OperationView, ...]
    next: str | None = None


class JobPage(ApiAnswer):
    """Jobs, newest first; `next` is the cursor of the next page, null at the end."""

    jobs: tuple[JobView, ...]
    next: str | None = None


class HostList(ApiAnswer):
    """Hosts that were ever online, by name; `next` is the cursor of the next page, if any."""

    hosts: tuple[HostView, ...]
    next: str | None = None


class ModelList(ApiAnswer):
    """Models of the catalog, by name; `next` is the cursor of the next page, if any."""

    models: tuple[ModelSpec, ...]
    next: str | None = None


class FootprintList(ApiAnswer):
    """What a model was measured to take, by image and kind of device."""

    footprints: tuple[FootprintView, ...]


class DatasetList(ApiAnswer):
    """Datasets of the catalog, by name; `next` is the cursor of the next page, if any."""

    datasets: tuple[DatasetSpec, ...]
    next: str | None = None


class DeadLetterSummary(ApiAnswer):
    """A message that could not be processed, without its payload."""

    dead_letter_id: str
    reason: str
    """Usually one of the stable codes; else the reason that the broker or another program gave."""
    detail: str = ""
    queue: str = ""
    """The queue that the message was taken from."""
    routing_key: str = ""
    message_id: str | None = None
    message_type: str | None = None
    message_priority: int = 0
    """The message's own priority, 0 to 255; that of its requests that name none."""
    content_type: str | None = None
    content_encoding: str | None = None
    """Both as the publisher set them; null: it did not."""
    payload_bytes: int = Field(default=0, ge=0)
    """Size of the whole payload."""
    replays: int = Field(default=0, ge=0)
    """How often it was published again."""
    replayed_at: datetime | None = None
    recorded_at: datetime | None = None
    links: dict[str, str] = Field(default_factory=dict)


class DeadLetterView(DeadLetterSummary):
    """A message that could not be processed, with its headers and payload."""

    headers: dict[str, str] = Field(default_factory=dict)
    payload: str = ""
    payload_encoding: Literal["utf-8", "base64"] = "utf-8"
    """`utf-8`: `payload` is text; `base64` (RFC 4648, section 4): the message was not UTF-8."""
    payload_truncated: bool = False
    """True if only the beginning of the payload was stored."""


class DeadLetterPage(ApiAnswer):
    """Dead letters, newest first; `next` is the cursor of the next page, null at the end."""

    dead_letters: tuple[DeadLetterSummary, ...]
    next: str | None = None


class Health(ApiAnswer):
    """Whether the gateway can accept requests, and the state of the services it depends on."""

    status: str
    parts: dict[str, str] = Field(default_factory=dict)


def problem(
    code: ErrorCode, title: str, status: int, detail: str, *, errors: tuple[Fault, ...] = ()
) -> Problem:
    """Return the problem document of a code."""
    return Problem(
        type=f"{PROBLEM_TYPE_PREFIX}{code}",
        title=title,
        status=status,
        detail=detail,
        code=code,
        errors=errors,
    )
