"""The messages between clients, gateway, dispatcher, workers and subscribers.

All are frozen. Every message on a queue carries `schema_version`; a reader takes the version it
knows and ignores fields that it does not (what comes from clients is the exception: there an
unknown field is an error). Times are UTC, durations are seconds.
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

from modelyard.contract.catalog.entries import DatasetSpec, ModelSpec
from modelyard.contract.catalog.values import Label, Text
from modelyard.contract.errors import ErrorInfo
from modelyard.contract.ids import DEFAULT_TENANT, Id, OperationId
from modelyard.contract.states import (
    JobState,
    OperationState,
    Phase,
    Verb,
)
from modelyard.contract.strict_json import canonical_json, dump_json

MAX_REQUEST_BYTES = 1 << 20
"""One request as JSON, through either door."""
MAX_BATCH = 1_000
"""Requests in one batch or one AMQP message."""
MAX_BATCH_BYTES = 8 << 20
"""A whole batch as JSON."""
MAX_MESSAGE_BYTES = 256 << 10
"""A list message between our own processes; a single larger item travels alone."""
MAX_RESULT_BYTES = 1 << 20
"""A result that a worker may report."""
MAX_INLINE_RESULT_BYTES = 256 << 10
"""A result that stays in the operation's document; larger ones go to GridFS."""
MAX_REPORT_BYTES = 4 << 20
"""A message of a worker: a result as JSON text within JSON may take twice its room."""
MAX_HEARTBEAT_BYTES = 64 << 10
MAX_METADATA = 32
"""Entries of a request's metadata."""
MAX_PRIORITY = 9
MAX_CONTAINER_CLAIM = 128
"""Characters of what a request calls the job's container; an id has 64."""
MAKING = (Verb.DEPLOY_CREATE, Verb.TEMP)
"""The verbs that make a container."""
MAX_TIMEOUT_S = 7 * 86_400.0


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


OptionalId = Annotated[
    Id | None, BeforeValidator(_empty_is_none, json_schema_input_type=Id | Literal[""] | None)
]
"""The original system's clients send `""` for what they leave out."""
ContainerClaim = Annotated[
    Annotated[str, StringConstraints(strict=True, max_length=MAX_CONTAINER_CLAIM)] | None,
    BeforeValidator(_empty_is_none, json_schema_input_type=Any),
]
"""What a client takes for a container's id."""
MetadataKey = Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
MetadataValue = Annotated[str, StringConstraints(strict=True, max_length=1024)]
Seconds = Annotated[float, Field(gt=0, le=MAX_TIMEOUT_S, strict=True, allow_inf_nan=False)]
Key = Annotated[str, StringConstraints(strict=True, pattern=r"^[\x21-\x7e]{1,255}$")]
"""An idempotency key: 1 to 255 printable ASCII characters without spaces."""


Count = Annotated[int, Field(ge=0, le=(1 << 63) - 1)]
"""A number that counts; it fits into 64 bits, as MongoDB's do."""
Positive = Annotated[int, Field(ge=1, le=(1 << 63) - 1)]
Slots = Annotated[int, Field(ge=0, le=100_000)]
Labels = Annotated[dict[Label, Text], Field(max_length=64)]


class Message(BaseModel):
    """What all messages between our own processes share."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", protected_namespaces=(), use_attribute_docstrings=True
    )


class JobRequest(BaseModel):
    """One request on a job: the same schema through HTTP and AMQP."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True
    )

    job_id: Id
    operation_type: Verb = Field(strict=False)
    model: OptionalId = None
    """Required for DEPLOY_CREATE and TEMP; elsewhere it is checked against the job's."""
    dataset: OptionalId = None
    container_id: ContainerClaim = None
    """Optional. DEPLOY_CREATE and TEMP ignore it, whatever it is; for the other verbs it is the id
    of the job's container, whole or its first 12 and more characters, or they are REJECTED."""
    input: Any = None
    """Any JSON; what INFER or TEMP sends to the model."""
    priority: int = Field(default=0, ge=0, le=MAX_PRIORITY, strict=True)
    """Higher goes first among operations that wait for a host; it never changes a job's order."""
    timeout_s: Seconds | None = None
    """Seconds from the worker's start of it until TIMED_OUT; null: the dispatcher's default."""
    queue_timeout_s: Seconds | None = None
    """Seconds it may stay QUEUED until EXPIRED; null: for ever."""
    metadata: dict[MetadataKey, MetadataValue] = Field(
        default_factory=dict, max_length=MAX_METADATA
    )
    """The client's own notes; kept and given back, never read."""

    @model_validator(mode="before")
    @classmethod
    def _what_makes_a_container_names_none(cls, value: object) -> object:
        """Drop what the original system's clients send before there is a container: `"aa"`."""
        if isinstance(value, dict) and value.get("operation_type") in MAKING:
            return {name: one for name, one in value.items() if name != "container_id"}
        return value

    @model_validator(mode="after")
    def _verb_has_what_it_needs(self) -> Self:
        if self.model is None and self.operation_type in MAKING:
            raise ValueError(f"{self.operation_type} needs a model")
        if self.input is None and self.operation_type is Verb.INFER:
            raise ValueError("INFER needs an input")
        return self

    def input_json(self) -> str | None:
        """Return the input as JSON text; null if there is none."""
        return None if self.input is None else dump_json(self.input)

    def payload_hash(self, input_json: str | None = None) -> str:
        """Return a SHA-256 that is equal for requests that mean the same.

        `input_json` is what `input_json()` returned, if the caller has it: often it is canonical
        already, and the input, which may be large, needs not be written out once more.
        """
        fields = self.model_dump(mode="json", exclude_defaults=True, exclude={"input"})
        if input_json is None or not _is_canonical(input_json):
            # As it is: what was parsed from JSON needs no other form to be written as JSON.
            whole = fields if self.input is None else fields | {"input": self.input}
            canonical = canonical_json(whole)
        else:
            texts = {name: canonical_json(value) for name, value in fields.items()}
            texts["input"] = input_json
            inner = ",".join(f'"{name}":{texts[name]}' for name in sorted(texts))
            canonical = f"{{{inner}}}"
        return hashlib.sha256(canonical.encode()).hexdigest()


def _is_canonical(json_text: str) -> bool:
    """Return True if `canonical_json` would write the same.

    Without objects there are no keys to sort, and of ASCII only DEL is written as an escape.
    """
    return json_text.isascii() and "{" not in json_text and "\x7f" not in json_text


class SubmittedRequest(Message):
    """A request that a gateway has validated and named."""

    operation_id: OperationId
    request: JobRequest
    retry_of: OperationId | None = None
    """The operation that failed and is run again as this one."""
    tenant: Id = DEFAULT_TENANT
    """Whose operation it is, as the gateway found out."""


class Submission(Message):
    """Gateway to dispatcher: requests that arrived together."""

    schema_version: Literal[1] = 1
    requests: Annotated[tuple[SubmittedRequest, ...], FailFast()] = Field(max_length=MAX_BATCH)


class CancelWish(Message):
    """Gateway to dispatcher: look at these operations, a client wants them cancelled.

    Only the fast way: the wish itself is in the record, and without one there this does nothing.
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
    container_id: str | None = None
    """What MongoDB knows of the job's container; the worker finds it by name all the same."""
    input_json: str | None = None
    """The request's input as JSON text, untouched."""
    timeout_s: float = Field(gt=0)


class HostCommands(Message):
    """A list of commands for one boot of one host's worker."""

    schema_version: Literal[1] = 1
    host_id: Id
    incarnation: str
    commands: tuple[HostCommand, ...]


CancelReason = Literal["cancelled", "timed_out", "stale"]


class CancelOperation(Message):
    """Dispatcher to worker: end this attempt now, whatever it is at. Repeating it is harmless."""

    operation_id: OperationId
    epoch: Positive
    reason: CancelReason = "cancelled"
    """`stale`: the record has moved on; nothing of it is to be reported any more."""


class RepeatReport(Message):
    """Dispatcher to worker: say the last report of this attempt again, for it was lost."""

    operation_id: OperationId
    epoch: Positive


class DiscardContainer(Message):
    """Dispatcher to worker: remove this container, which nobody owns. Repeating it is harmless."""

    container_id: str
    job_id: str
    generation: Count


class HostControl(Message):
    """What one boot of one host's worker is told past the commands that wait in its queue."""

    schema_version: Literal[1] = 1
    host_id: Id
    incarnation: str
    cancels: tuple[CancelOperation, ...] = ()
    discards: tuple[DiscardContainer, ...] = ()
    repeats: tuple[RepeatReport, ...] = ()
    renounce: bool = False
    """True if this boot was given up as LOST and has to announce itself anew."""
    unusable: str | None = None
    """Why this host can't be used, in a sentence for its operator; the worker ends with it."""


class Progress(Message):
    """How far a phase is. `total` is null while it is not known."""

    current: Count
    total: Count | None = None
    unit: Literal["bytes", "layers", "items"] = "bytes"


class OperationReport(Message):
    """Worker to dispatcher: the full state of one attempt as the worker sees it.

    `(operation_id, epoch, seq)` orders and dedups it. `job_state` is what is true of the job's
    container after it, null if it says nothing new of it.
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
    container_id: str | None = None
    error: ErrorInfo | None = None
    result_json: str | None = None
    """The result as JSON text."""


class InventoryItem(Message):
    """A labelled container that a worker found on its engine."""

    container_id: str
    job_id: str
    generation: Count
    operation_id: str
    running: bool
    loaded: bool = False
    """True if its model is in memory and answers. A reader that knows `answer` goes by that."""
    ever_started: bool = True
    exit_code: int | None = None
    """Null while it runs, and before its first start."""
    oom_killed: bool = False
    """True if any process in it was killed for want of memory; not always the main one."""
    disk_exceeded: bool = False
    """True if its worker has ended it for what it wrote to the disk."""
    unhealthy: bool = False
    """True if it has answered for several looks that it is not ready, and never that it is."""
    answer: Literal["yes", "no", "silent", "not_asked"] | None = None
    """What its server answered when it was asked if it is ready; null from workers before 0.2.

    `silent`: no answer came in time, which proves nothing. `not_asked`: it is worked on, does not
    run, or has nothing that can be asked.
    """


class Inventory(Message):
    """All labelled containers of a host, as they were between two moments.

    Published after all reports of what ended before it was begun, so that a reader who takes a
    host's messages in their order may compare it with the record.
    """

    items: Annotated[tuple[InventoryItem, ...], FailFast()] = ()
    busy: Annotated[tuple[str, ...], FailFast()] = ()
    """Jobs that were worked on meanwhile: nothing can be concluded about them."""


class EngineFacts(Message):
    """What a Docker engine says of itself."""

    version: str
    api_version: str
    operating_system: str = ""
    cpus: Count = 0
    memory: Count = 0


class HostOnline(Message):
    """A worker has booted: what it offers and what it found."""

    slots: Slots
    labels: Labels = Field(default_factory=dict)
    engine: EngineFacts
    inventory: Annotated[tuple[InventoryItem, ...], FailFast()] = ()


class WorkerReports(Message):
    """What one boot of a host's worker reports; `online` counts first, `inventory` last."""

    schema_version: Literal[1] = 1
    host_id: Id
    incarnation: str
    number: Count = 0
    """Grows with each message of this boot: what is told later has a higher one."""
    online: HostOnline | None = None
    operations: tuple[OperationReport, ...] = ()
    inventory: Inventory | None = None


class HostHello(Message):
    """A worker asks a dispatcher for its host's queues: it may declare none itself."""

    schema_version: Literal[1] = 1
    host_id: Id
    incarnation: str


class Heartbeat(Message):
    """Sent only if Docker answered and the consumer is attached."""

    schema_version: Literal[1] = 1
    host_id: Id
    incarnation: str
    slots: Slots
    labels: Labels = Field(default_factory=dict)
    running: Count = 0
    """Operations that the worker works on."""


class Event(Message):
    """A recorded fact, published on `modelyard.events` after it was stored; for anyone.

    Delivery is at least once: `event_id` is the same for the same fact.
    """

    schema_version: Literal[1] = 1
    event_id: str
    type: str
    """The routing key too: `operation.<state>`, `job.<state>`, `host.<fact>`, in lower case."""
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
    detail: dict[str, Any] = Field(default_factory=dict)
