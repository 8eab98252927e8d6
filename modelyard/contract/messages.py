"""The messages between clients, gateway, dispatcher, workers and subscribers.

All are frozen. Every message on a queue carries `schema_version`; a reader accepts the versions it
knows and ignores fields that it does not know. The next version is read one release before it is
written, and the one before is read for as long (`docs/upgrading.md`). A client's request is the
exception: there an unknown field is an error. Times are UTC, durations are seconds.
"""

import hashlib
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    StringConstraints,
    model_validator,
)
from pydantic.config import JsonDict

from modelyard.contract.capacity.footprints import Footprint
from modelyard.contract.capacity.local_content import LocalContent
from modelyard.contract.capacity.offers import (
    MAX_DEVICES,
    Bytes,
    DeviceId,
    DeviceReading,
    HostCapacity,
)
from modelyard.contract.catalog.entries import DatasetSpec, ModelSpec
from modelyard.contract.catalog.values import Label, Text
from modelyard.contract.content.free_text import cut_to
from modelyard.contract.content.results import ResultContent
from modelyard.contract.content.transfers import StoredResult, TransferAnswer
from modelyard.contract.errors import ErrorInfo
from modelyard.contract.ids import (
    DEFAULT_TENANT,
    ContainerId,
    Id,
    Incarnation,
    InputId,
    MustBe,
    OperationId,
)
from modelyard.contract.states import (
    JobState,
    OperationState,
    Phase,
    Verb,
)
from modelyard.contract.strict_json import canonical_json, dump_json

MAX_REQUEST_BYTES = 1 << 20
"""One request as JSON, over HTTP or AMQP."""
MAX_BATCH = 1_000
"""Requests in one batch or one AMQP message."""
MAX_BATCH_BYTES = 8 << 20
"""A whole batch as JSON."""
MAX_MESSAGE_BYTES = 256 << 10
"""A message with a list between our own processes; a larger item is sent alone."""
MAX_RESULT_BYTES = 1 << 20
"""A result that a worker puts into its report; a larger one goes ahead in pieces."""
MAX_INLINE_RESULT_BYTES = 256 << 10
"""A result that stays in the operation's document; larger ones go to GridFS."""
MAX_EVENT_RESULT_BYTES = 16 << 10
"""A result that is in the event of its operation's end; every subscriber gets it."""
MAX_REPORT_BYTES = 4 << 20
"""A message of a worker. A result in it is JSON text inside of JSON, which may double its size."""
MAX_HEARTBEAT_BYTES = 64 << 10
MAX_METADATA = 32
"""Entries of a request's metadata."""
MIN_PRIORITY, MAX_PRIORITY = -100, 100
AGING_S = 60.0
"""Seconds of waiting that count as much as one point of priority: so every wait is bounded."""
MAX_CONTAINER_CLAIM = 128
"""Characters of a request's `container_id`; a whole id has 64."""
MAKING = (Verb.DEPLOY_CREATE, Verb.TEMP)
"""The verbs that create a container."""
MAX_TIMEOUT_S = 7 * 86_400.0


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


def _check_input(given: object, uploaded: str | None, who: str, *, needed: bool = True) -> None:
    if given is not None and uploaded is not None:
        raise ValueError("either input or input_id, not both")
    if needed and given is None and uploaded is None:
        raise ValueError(f"{who} needs an input")


OptionalId = Annotated[
    Id | None, BeforeValidator(_empty_is_none, json_schema_input_type=Id | Literal[""] | None)
]
"""An id that may be left out; the original system's clients send `""` then."""
ContainerClaim = Annotated[
    Annotated[str, StringConstraints(strict=True, max_length=MAX_CONTAINER_CLAIM)] | None,
    BeforeValidator(_empty_is_none, json_schema_input_type=Any),
]
"""A container's id as a client gives it; it may be wrong."""
MetadataKey = Annotated[
    str,
    StringConstraints(strict=True, pattern=r"^[A-Za-z0-9_.-]{1,64}$"),
    MustBe("1 to 64 letters, digits, `_`, `.` and `-`"),
]
MetadataValue = Annotated[str, StringConstraints(strict=True, max_length=1024)]
Seconds = Annotated[float, Field(gt=0, le=MAX_TIMEOUT_S, strict=True, allow_inf_nan=False)]
KEY_PATTERN = r"^[!-~]{1,255}$"
Key = Annotated[
    str,
    StringConstraints(strict=True, pattern=KEY_PATTERN),
    MustBe("1 to 255 printable ASCII characters without spaces"),
]
"""An idempotency key: 1 to 255 printable ASCII characters without spaces."""


Count = Annotated[int, Field(ge=0, le=(1 << 63) - 1)]
"""A counter that fits into MongoDB's 64-bit integers."""
Positive = Annotated[int, Field(ge=1, le=(1 << 63) - 1)]
Slots = Annotated[int, Field(ge=0, le=100_000)]
EngineText = Annotated[str, cut_to(256)]
"""What a Docker engine says; cut after 256 characters."""
Labels = Annotated[dict[Label, Text], Field(max_length=64)]


class Message(BaseModel):
    """What all messages between our own processes share."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", protected_namespaces=(), use_attribute_docstrings=True
    )


class RequestFields(BaseModel):
    """What a request says besides what it is about. A field that is not known is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True
    )

    input: Any = None
    """Any JSON; INFER and TEMP send it to the model."""
    input_id: InputId | None = None
    """An input that was uploaded with `POST /v1/inputs`, in place of `input`: it may be larger, and
    of any type. The model gets it as it is."""
    priority: int = Field(default=0, ge=MIN_PRIORITY, le=MAX_PRIORITY, strict=True)
    """Higher goes first among operations that wait for a host; a minute of waiting counts as one
    point, so none waits for ever. It never changes the order within a job. In a message over AMQP
    the property `priority` of the message counts if this is left out."""
    timeout_s: Seconds | None = None
    """Seconds that the operation may run on a worker until it is TIMED_OUT; null: the dispatcher's
    default."""
    queue_timeout_s: Seconds | None = None
    """Seconds that the operation may stay QUEUED until it is EXPIRED; null: no limit."""
    metadata: dict[MetadataKey, MetadataValue] = Field(
        default_factory=dict, max_length=MAX_METADATA
    )
    """The client's own notes. Modelyard stores and returns them, and never reads them."""


_GIVEN: JsonDict = {"required": ["input"], "properties": {"input": {"not": {"type": "null"}}}}
_UPLOADED: JsonDict = {"required": ["input_id"], "properties": {"input_id": {"type": "string"}}}

_ONE: JsonDict = {
    "anyOf": [
        {"properties": {"input": {"type": "null"}}},
        {"properties": {"input_id": {"type": "null"}}},
    ]
}


class InferenceRequest(RequestFields):
    """An inference on any job of a model: `POST /v1/models/{name}/infer`."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [_GIVEN, _UPLOADED], "allOf": [_ONE]})

    @model_validator(mode="after")
    def _has_one_input(self) -> Self:
        _check_input(self.input, self.input_id, "an inference")
        return self


_CONDITIONS: JsonDict = {
    "allOf": [
        {
            "if": {"properties": {"operation_type": {"enum": list(MAKING)}}},
            "then": {
                "required": ["model"],
                "properties": {"model": {"type": "string", "minLength": 1}},
            },
            "else": {
                "properties": {
                    "container_id": {
                        "type": ["string", "null"],
                        "maxLength": MAX_CONTAINER_CLAIM,
                    }
                }
            },
        },
        {
            "if": {"properties": {"operation_type": {"const": Verb.INFER}}},
            "then": {"anyOf": [_GIVEN, _UPLOADED]},
        },
        _ONE,
    ]
}
"""What each verb needs, for the JSON schema of a request."""


class JobRequest(RequestFields):
    """One request on a job: the same schema over HTTP and AMQP."""

    model_config = ConfigDict(json_schema_extra=_CONDITIONS)

    job_id: Id
    operation_type: Verb = Field(strict=False)
    model: OptionalId = None
    """Required for DEPLOY_CREATE and TEMP; for the other verbs it must be the job's model."""
    dataset: OptionalId = None
    container_id: ContainerClaim = None
    """Optional. DEPLOY_CREATE and TEMP ignore it. The other verbs are REJECTED unless it is the id
    of the job's container, in full or at least its first 12 characters."""

    @model_validator(mode="before")
    @classmethod
    def _drop_container_id_of_creating_verbs(cls, value: object) -> object:
        """Drop it: the original system's clients send `"aa"` before there is a container."""
        if isinstance(value, dict) and value.get("operation_type") in MAKING:
            return {name: one for name, one in value.items() if name != "container_id"}
        return value

    @model_validator(mode="after")
    def _verb_has_what_it_needs(self) -> Self:
        if self.model is None and self.operation_type in MAKING:
            raise ValueError(f"{self.operation_type} needs a model")
        infers = self.operation_type is Verb.INFER
        _check_input(self.input, self.input_id, "INFER", needed=infers)
        return self

    def input_json(self) -> str | None:
        """Return the input as JSON text; null if there is none."""
        return None if self.input is None else dump_json(self.input)

    def payload_hash(self, input_json: str | None = None) -> str:
        """Return a SHA-256 that is equal for requests that mean the same.

        `input_json` is what `input_json()` returned, if the caller has it. It is often canonical
        already; then the input, which may be large, is not serialized again.
        """
        fields = self.model_dump(mode="json", exclude_defaults=True, exclude={"input"})
        if input_json is None or not _is_canonical(input_json):
            # The input came from JSON, so it is serialized as it is.
            whole = fields if self.input is None else fields | {"input": self.input}
            canonical = canonical_json(whole)
        else:
            texts = {name: canonical_json(value) for name, value in fields.items()}
            texts["input"] = input_json
            inner = ",".join(f'"{name}":{texts[name]}' for name in sorted(texts))
            canonical = f"{{{inner}}}"
        return hashlib.sha256(canonical.encode()).hexdigest()


def _is_canonical(json_text: str) -> bool:
    """Return True if `canonical_json` would write the same text.

    Without objects there are no keys to sort, and DEL is the only ASCII character that only
    `canonical_json` escapes.
    """
    return json_text.isascii() and "{" not in json_text and "\x7f" not in json_text


LATEST_MS = 253_402_300_799_999
"""The end of the year 9999 in milliseconds since 1970."""


class SubmittedRequest(Message):
    """A request that a gateway has validated and given an operation id."""

    operation_id: OperationId
    request: JobRequest
    retry_of: OperationId | None = None
    """The operation that ended without success and that this one runs again."""
    tenant: Id = DEFAULT_TENANT
    """The tenant that owns the operation, as the gateway found out."""
    accepted_ms: int | None = Field(default=None, ge=0, le=LATEST_MS)
    """When the gateway accepted it, in milliseconds since 1970 by MongoDB's clock; null if the
    gateway did not know that clock."""
    accepted_number: int = Field(default=0, ge=0, lt=1 << 63)
    """Orders the operations that a gateway accepts in the same millisecond."""


class Submission(Message):
    """Gateway to dispatcher: requests that arrived in one batch."""

    schema_version: Literal[1] = 1
    requests: Annotated[tuple[SubmittedRequest, ...], FailFast()] = Field(max_length=MAX_BATCH)


class CancelNotice(Message):
    """Gateway to dispatcher: a client has asked to cancel these operations.

    The request to cancel is in each operation's record. This message only makes the dispatcher read
    it sooner; it has no effect on an operation whose record has no such request.
    """

    schema_version: Literal[1] = 1
    operation_ids: tuple[OperationId, ...] = Field(max_length=MAX_BATCH)


class HostCommand(Message):
    """Dispatcher to worker: do this verb, for this attempt of the operation, to this container."""

    operation_id: OperationId
    epoch: Positive
    verb: Verb
    job_id: Id
    generation: Positive
    model: ModelSpec
    dataset: DatasetSpec | None = None
    devices: Annotated[tuple[DeviceId, ...], Field(max_length=MAX_DEVICES)] = ()
    """The devices that are bound to the job's container, by uuid."""
    container_id: str | None = None
    """The id of the job's container in MongoDB. The worker finds the container by name."""
    input_json: str | None = None
    """The request's input as JSON text, untouched."""
    input_id: InputId | None = None
    """An uploaded input, of which the worker asks for each piece."""
    stop_container: bool = False
    """Only for UNLOAD: stop the container instead of asking its server, which may be half loaded.
    Workers before 0.2 ask."""
    timeout_s: float = Field(gt=0)


class HostCommands(Message):
    """A list of commands for one boot of one host's worker."""

    schema_version: Literal[1] = 1
    host_id: Id
    incarnation: str
    commands: tuple[HostCommand, ...]


CancelReason = Literal["cancelled", "timed_out", "stale"]


class CancelOperation(Message):
    """Dispatcher to worker: stop this attempt now, in any phase. Repeating it is harmless."""

    operation_id: OperationId
    epoch: Positive
    reason: CancelReason = "cancelled"
    """`stale`: the attempt was superseded, and the worker reports nothing more about it."""


class RepeatReport(Message):
    """Dispatcher to worker: send the last report of this attempt again, because it was lost."""

    operation_id: OperationId
    epoch: Positive


class DiscardContainer(Message):
    """Dispatcher to worker: remove this container, which nobody owns. Repeating it is harmless."""

    container_id: str
    job_id: str
    generation: Count


class HostControl(Message):
    """Dispatcher to one boot of one host's worker: what must not wait behind the commands."""

    schema_version: Literal[1] = 1
    host_id: Id
    incarnation: str
    cancels: tuple[CancelOperation, ...] = ()
    discards: tuple[DiscardContainer, ...] = ()
    repeats: tuple[RepeatReport, ...] = ()
    transfers: tuple[TransferAnswer, ...] = ()
    """About large inputs and results."""
    renounce: bool = False
    """True if the dispatcher declared this boot LOST; the worker must announce itself again."""
    unusable: str | None = None
    """Why this host can't be used, in a sentence for its operator; the worker exits with it."""


class Progress(Message):
    """The progress of a phase. `total` is null while it is not known."""

    current: Count
    total: Count | None = None
    unit: Literal["bytes", "layers", "items"] = "bytes"


class OperationReport(Message):
    """Worker to dispatcher: the full state of one attempt as the worker sees it.

    `(operation_id, epoch, seq)` orders and deduplicates reports. `job_state` is the state of the
    job after this report; null if the report does not change it.
    """

    operation_id: OperationId
    epoch: Positive
    seq: Positive
    job_id: Id
    generation: Positive
    state: OperationState
    phase: Phase | None = None
    progress: Progress | None = None
    job_state: JobState | None = None
    container_id: ContainerId | None = None
    error: ErrorInfo | None = None
    result_json: str | None = None
    """The result as JSON text; null if it is not JSON."""
    result_content: ResultContent | None = None
    """The result with its type if it is not JSON."""
    result_stored: StoredResult | None = None
    """The result if it was sent in pieces, because it is large."""
    ran_s: float | None = Field(default=None, ge=0, le=1e9)
    """Seconds since the attempt began, by the worker's own clock; null if it is not known."""
    footprint: Footprint | None = None
    """What the job's model was measured to take: after its load, and later if it has become more.
    Null if there is nothing new, and from workers before 0.2."""


class InventoryItem(Message):
    """A labelled container that a worker found on its engine."""

    container_id: ContainerId
    job_id: Id
    generation: Count
    operation_id: EngineText
    running: bool
    loaded: bool = False
    """True if its model is in memory and answers. Readers that know `answer` use that instead."""
    ever_started: bool = True
    exit_code: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    """Null while it runs, and before its first start."""
    oom_killed: bool = False
    """True if any process in it was killed because memory ran out; not always the main one."""
    disk_exceeded: bool = False
    """True if the worker stopped it because it wrote too much to the disk."""
    unhealthy: bool = False
    """True if it answered several checks with "not ready", and none of them with "ready"."""
    answer: Literal["yes", "no", "silent", "not_asked"] | None = None
    """The server's answer when the worker asked if it is ready; null from workers before 0.2.

    `silent`: no answer came in time, which proves nothing. `not_asked`: an operation works on the
    container, it does not run, or its model has no check of readiness.
    """
    error: ErrorInfo | None = None
    """Why it is `unhealthy`, or why it died, if the worker knows: with what its server answered, or
    with the end of its log. Null from workers before 0.2."""


class Inventory(Message):
    """All labelled containers of a host, as the worker found them in one check.

    The worker publishes it after the reports of all operations that ended before the check began.
    So a reader that takes a host's messages in order may compare it with the records.
    """

    items: Annotated[tuple[InventoryItem, ...], FailFast()] = ()
    busy: Annotated[tuple[Id, ...], FailFast()] = ()
    """Jobs that an operation worked on during the check; it proves nothing about them."""
    local: LocalContent = LocalContent()
    """Images and datasets that the host has; empty from workers before 0.2."""


class EngineFacts(Message):
    """What a Docker engine reports about itself."""

    version: EngineText
    api_version: EngineText
    operating_system: EngineText = ""
    cpus: Count = 0
    memory: Count = 0


class HostOnline(Message):
    """A worker has booted: the capacity it offers and the containers it found."""

    slots: Slots | None = None
    """Most jobs at the same time; null: its processors, memory and devices are the only limit."""
    labels: Labels = Field(default_factory=dict)
    capacity: HostCapacity | None = None
    """Null from workers before 0.2: only the slots are counted then."""
    engine: EngineFacts
    inventory: Annotated[tuple[InventoryItem, ...], FailFast()] = ()
    begun_known: bool = True
    """False: earlier workers of this host may have begun operations that nobody has reported."""


class WorkerReports(Message):
    """Reports of one boot of a host's worker; readers take `online` first, `inventory` last."""

    schema_version: Literal[1] = 1
    host_id: Id
    incarnation: Incarnation
    number: Count = 0
    """Increases with each message of this boot."""
    online: HostOnline | None = None
    operations: tuple[OperationReport, ...] = ()
    inventory: Inventory | None = None


class HostHello(Message):
    """A worker asks a dispatcher to declare its host's queues, for it may not do so itself."""

    schema_version: Literal[1] = 1
    host_id: Id
    incarnation: Incarnation


class Heartbeat(Message):
    """A worker's sign of life, sent only if Docker answered and its consumer is attached."""

    schema_version: Literal[1] = 1
    host_id: Id
    incarnation: Incarnation
    slots: Slots | None = None
    labels: Labels = Field(default_factory=dict)
    running: Count = 0
    """Operations that the worker works on."""
    devices: Annotated[tuple[DeviceReading, ...], FailFast()] = Field((), max_length=MAX_DEVICES)
    """The last measurement of each device; one that is missing could not be measured."""
    memory_used: Bytes | None = None
    """Bytes of the host's memory in use by anyone; null if it was not measured."""


class Event(Message):
    """A recorded fact, published on `modelyard.events` after it was stored; for anyone.

    It may come twice, with the same `event_id`, and it may be missing if a dispatcher or RabbitMQ
    died as it was published: the record has every fact.
    """

    schema_version: Literal[1] = 1
    event_id: str
    type: str
    """The routing key too: `operation.<state>`, `job.<state>`, `host.<fact>`, in lower case.

    Only as a reply: `operation.payload_mismatch`, to a request whose key belongs to another one.
    """
    at: datetime
    operation_id: str | None = None
    job_id: str | None = None
    host_id: str | None = None
    verb: Verb | None = None
    state: OperationState | JobState | None = None
    phase: Phase | None = None
    progress: Progress | None = None
    epoch: int | None = None
    seq: int | None = None
    generation: int | None = None
    container_id: str | None = None
    error: ErrorInfo | None = None
    cancel_requested: bool | None = None
    """True if a client had asked to cancel the operation; null if not, or if it is not known."""
    result_bytes: int | None = None
    """Size of the operation's result; null if there is none."""
    result_type: str | None = None
    """Media type of the result; null from dispatchers before 0.2, whose results are all JSON."""
    result_sha256: str | None = None
    """SHA-256 of the result in hexadecimal digits."""
    result: Any = None
    """The operation's result, if it is JSON and has at most 16 KiB. Without it read the result over
    HTTP, if `result_bytes` says that there is one."""
    accepted_at: datetime | None = None
    """Set only if the event is about an operation that has ended."""
    dispatched_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    """Set only if the event is about an operation that has ended, and then the event has all that
    its end changed in the operation's view."""
    detail: dict[str, Any] = Field(default_factory=dict)
