"""MongoDB's documents as typed values; raw documents do not leave this package."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Literal, Self, TypeVar

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from modelyard.contract.capacity.ledger import (
    Allocation,
    Room,
    held_on_devices,
    room_left,
    total_room,
    used_part,
)
from modelyard.contract.capacity.offers import (
    DeviceId,
    DeviceReading,
    DeviceTaint,
    HostCapacity,
    taints_of,
)
from modelyard.contract.catalog.entries import DatasetSpec, ModelSpec
from modelyard.contract.catalog.rules import AS_RECORDED
from modelyard.contract.errors import ErrorCode, ErrorInfo, InvalidRequestError
from modelyard.contract.ids import DEFAULT_TENANT
from modelyard.contract.messages import (
    AGING_S,
    MAX_REQUEST_BYTES,
    EngineFacts,
    JobRequest,
    Progress,
)
from modelyard.contract.states import (
    VERB_RULES,
    Admission,
    JobState,
    Liveness,
    OperationState,
    Phase,
    Verb,
)
from modelyard.contract.strict_json import dump_json
from modelyard.contract.validation import first_errors

log = structlog.get_logger(__name__)

Source = Literal["http", "amqp", "system"]
Document = dict[str, Any]


class Record(BaseModel):
    """What all records share. Unknown fields are ignored: a newer process may have written them."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", populate_by_name=True, protected_namespaces=()
    )

    def model_post_init(self, _context: object, /) -> None:
        """Forget which fields were given: nobody asks, and that is half of a record's memory."""
        self.__pydantic_fields_set__.clear()


def error_document(error: ErrorInfo | None) -> Document | None:
    """Return an error as it is stored: its detail is any JSON, and not all of that is BSON."""
    if error is None:
        return None
    return {"code": error.code, "message": error.message, "detail": dump_json(error.detail)}


S = TypeVar("S", ModelSpec, DatasetSpec)


def _recorded(kind: type[S], value: object) -> object:
    """Read the text of a stored spec without applying the rules of the catalog.

    A spec whose types don't fit is logged and read as None. So its job can still be listed, and
    does not make other jobs unreadable.
    """
    if not isinstance(value, str):
        return value
    try:
        return kind.model_validate_json(value, context=AS_RECORDED, extra="ignore")
    except ValidationError as error:
        log.error("job.unreadable_spec", reason=first_errors(error))  # noqa: TRY400 - a traceback would not help
        return None


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Moment = tuple[datetime, int]
"""A time by the database's clock in whole milliseconds, and a number that grows with each operation
that one process accepts: it orders those of the same millisecond."""


def rank_of(priority: int, accepted_at: datetime) -> int:
    """Return the turn of an operation: its acceptance in milliseconds, earlier by its priority.

    Priority that grows with each second of waiting gives the same order at all times, so it is
    stored once: a higher one with `p` points more goes first unless it came `p * AGING_S` later.
    """
    accepted_ms = round((accepted_at - EPOCH) / timedelta(milliseconds=1))
    return accepted_ms - points_ms(priority)


def points_ms(priority: int) -> int:
    """Return the milliseconds of waiting that a priority counts as much as."""
    return round(priority * AGING_S * 1_000)


class ReplyAddress(Record):
    """A queue in which the publisher of a request waits for its end."""

    queue: str
    correlation_id: str | None = None
    """What the publisher calls its request; null: it did not say."""


class NewOperation(Record):
    """An operation that is about to be recorded for the first time."""

    operation_id: str
    job_id: str | None
    verb: Verb | None
    source: Source
    payload_hash: str
    model: str | None = None
    dataset: str | None = None
    wanted_container_id: str | None = None
    input_json: str | None = None
    input_id: str | None = None
    """An uploaded input, in place of `input_json`."""
    priority: int = 0
    timeout_s: float | None = None
    queue_timeout_s: float | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    retry_of: str | None = None
    reason: str | None = None
    """Why Modelyard itself submitted it: `idle`, `on_demand:<operation>` and the like."""
    tenant: str = DEFAULT_TENANT
    """The tenant that owns it."""
    reply: ReplyAddress | None = None
    """Where its end is told, if its message says so."""
    rest_s: float = 0.0
    """Seconds after it was recorded during which it is not dispatched."""
    aside: bool = False
    """True if it is outside of its job's order: it prepares a move while other operations go on."""
    rejection: ErrorInfo | None = None
    """Set if it is recorded as REJECTED at once."""
    accepted: Moment | None = None
    """When its gateway accepted it; None: when it is recorded."""

    @classmethod
    def of(
        cls,
        operation_id: str,
        request: JobRequest,
        source: Source,
        *,
        retry_of: str | None = None,
        tenant: str = DEFAULT_TENANT,
    ) -> Self:
        """Return the operation that a valid request asks for.

        Raises `InvalidRequestError` with `body_too_large` if the input as JSON text is larger than
        a request may be: `1e15`, for example, is written out as `1000000000000000.0`.
        """
        input_json = request.input_json()
        if input_json is not None and len(input_json.encode()) > MAX_REQUEST_BYTES:
            raise InvalidRequestError(
                ErrorCode.BODY_TOO_LARGE,
                f"The input takes more than {MAX_REQUEST_BYTES} bytes as JSON.",
            )
        return cls(
            operation_id=operation_id,
            job_id=request.job_id,
            verb=request.operation_type,
            source=source,
            payload_hash=request.payload_hash(input_json),
            model=request.model,
            dataset=request.dataset,
            wanted_container_id=request.container_id,
            input_json=input_json,
            input_id=request.input_id,
            priority=request.priority,
            timeout_s=request.timeout_s,
            queue_timeout_s=request.queue_timeout_s,
            metadata=request.metadata,
            retry_of=retry_of,
            tenant=tenant,
        )

    def queued(self, line: int | None = None) -> "OperationRecord":
        """Return the record of this operation as it is while it is new, with its position."""
        return OperationRecord(
            operation_id=self.operation_id,
            job_id=self.job_id,
            verb=self.verb,
            source=self.source,
            payload_hash=self.payload_hash,
            model=self.model,
            dataset=self.dataset,
            wanted_container_id=self.wanted_container_id,
            has_input=self.input_json is not None,
            input_json=self.input_json,
            input_id=self.input_id,
            priority=self.priority,
            rank=rank_of(self.priority, self.accepted[0]) if self.accepted else 0,
            timeout_s=self.timeout_s,
            queue_timeout_s=self.queue_timeout_s,
            metadata=self.metadata,
            retry_of=self.retry_of,
            reason=self.reason,
            tenant=self.tenant,
            reply=self.reply,
            aside=self.aside,
            state=OperationState.REJECTED if self.rejection else OperationState.QUEUED,
            error=self.rejection,
            line=line,
            accepted_at=self.accepted[0] if self.accepted else None,
        )


class LastReport(Record):
    """The last message of a worker that changed a job, or ended a leg of its relocation."""

    incarnation: str
    number: int

    def after(self, incarnation: str, number: int) -> bool:
        """Tell whether this message came after the given one of the same boot."""
        return self.incarnation == incarnation and self.number > number


class OperationRecord(Record):
    """One operation. `line` is its position in the order of acceptance; None before intake."""

    operation_id: str = Field(alias="_id")
    job_id: str | None = None
    verb: Verb | None = None
    source: Source = "http"
    payload_hash: str = ""
    model: str | None = None
    dataset: str | None = None
    wanted_container_id: str | None = None
    has_input: bool = False
    input_json: str | None = None
    """None also if the query left it out, because it may be large."""
    input_id: str | None = None
    priority: int = 0
    rank: int = 0
    """When it is the turn of what waits for a host: the lowest goes first; see `rank_of`."""
    timeout_s: float | None = None
    queue_timeout_s: float | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    retry_of: str | None = None
    reason: str | None = None
    tenant: str = DEFAULT_TENANT
    reply: ReplyAddress | None = None
    payload_mismatch: bool = False
    """True if its id came again with another request, which has no effect."""
    cancel_requested: bool = False
    not_before: datetime | None = None
    resting: bool = False
    """True while `not_before` is in the future by the database's clock; only `Jobs.lines` sets
    it."""
    failures: int = 0
    """Attempts that failed and were followed by another one."""
    returns: int = 0
    """How often a host was given it and never began it."""
    avoid: tuple[str, ...] = ()
    """Hosts on which attempts failed; the scheduler tries other hosts first."""
    aside: bool = False
    told: LastReport | None = None
    """The message with its last report; recorded only of what is `aside`."""
    state: OperationState
    line: int | None = None
    phase: Phase | None = None
    progress: Progress | None = None
    waiting_for: tuple[str, ...] = ()
    epoch: int = 0
    seq: int = 0
    host_id: str | None = None
    incarnation: str | None = None
    generation: int | None = None
    container_id: str | None = None
    error: ErrorInfo | None = None
    result_bytes: int | None = None
    result_type: str | None = None
    """Media type; None of a result that an older version stored, which is JSON."""
    result_sha256: str | None = None
    accepted_at: datetime | None = None
    dispatched_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    result_gone: bool = False
    """True once its result was removed, because it was old; `result_bytes` stays."""
    deleted: bool = False
    """True for the stub of an operation that a client has deleted: no client sees it."""

    @property
    def places(self) -> bool:
        """True if its verb needs a new reservation when it starts."""
        return self.verb is not None and VERB_RULES[self.verb].places

    @property
    def feeds(self) -> bool:
        """True if it has an input of either kind."""
        return self.has_input or self.input_id is not None

    @property
    def input_at_hand(self) -> bool:
        """True if it has no input, or this record holds it."""
        return not self.has_input or self.input_json is not None

    @property
    def shared(self) -> bool:
        """True if several operations with its verb may run on a job at the same time."""
        return self.verb is not None and VERB_RULES[self.verb].shared


_NAMES_IN_RECORDS = {"operation_type": "verb", "container_id": "wanted_container_id"}


def request_fields(operation: NewOperation | OperationRecord) -> dict[str, Any]:
    """Return the fields of the request that an operation is from, all but `input`."""
    return {
        name: getattr(operation, _NAMES_IN_RECORDS.get(name, name))
        for name in JobRequest.model_fields
        if name != "input"
    }


class CurrentOperation(Record):
    """The operation and attempt that may change the job now; it fences off all others."""

    operation_id: str
    epoch: int
    seq: int = 0


ENDED_JOB: Document = {
    "state": {"$in": sorted(state for state in JobState if not state.live)},
    "host_id": None,
    "move": None,
    "recovery": None,
}
"""A job that has no container, and that is not about to get one."""


class RestorationRecord(Record):
    """A job is to be restored; the write that records it as down sets this too."""

    to: JobState
    """CREATED or LOADED."""
    key: int
    """Identifies this restoration among those of the job."""
    rest_s: float = 0.0


class RelocationRecord(Record):
    """A live job is being prepared on another host while it goes on running on its own."""

    host_id: str
    generation: int
    state: JobState
    """The job's state when the move began; if the state changes, the job is not moved."""
    devices: tuple[DeviceId, ...] = ()
    """The devices that are bound to its container there."""


class JobRecord(Record):
    """One job. While it has a `host_id` it holds a reservation there."""

    job_id: str = Field(alias="_id")
    state: JobState = JobState.NONE
    version: int = 0
    """Increases with every write; a guarded write compares it."""
    generation: int = 0
    host_id: str | None = None
    container_id: str | None = None
    spec: ModelSpec | None = None
    """The model as it was when the job was placed; later changes of the catalog don't reach it."""
    dataset_spec: DatasetSpec | None = None
    devices: tuple[DeviceId, ...] = ()
    """The devices that are bound to its container, by uuid."""
    current: CurrentOperation | None = None
    highest_generation: int = 0
    """The highest generation that was ever given out; an abandoned move leaves a gap."""
    move: RelocationRecord | None = None
    move_failures: int = 0
    recovery: RestorationRecord | None = None
    """Set while the job is down and the operations that restore it are not recorded yet."""
    restarts: int = 0
    """Restarts in a row."""
    steady: bool = False
    """True if the model was loaded long enough to begin the count of restarts again; only
    `Jobs.on_host`, `Jobs.on_hosts` and `Jobs.get_with_age` set it."""
    error: ErrorInfo | None = None
    told: LastReport | None = None
    """Earlier messages of the same boot say nothing about the job any more."""
    loaded_at: datetime | None = None
    """When its model was loaded last, by the database's clock."""
    load_s: float | None = None
    """Seconds that this took."""
    created_at: datetime | None = None
    updated_at: datetime | None = None

    @property
    def next_generation(self) -> int:
        """The generation of its next container."""
        return max(self.generation, self.highest_generation) + 1

    def above(self, floor: int) -> Self:
        """Return the job; if it never had a container, its first generation is above the floor."""
        if floor == 0 or self.next_generation > 1:
            return self
        return self.model_copy(update={"highest_generation": floor})

    def devices_of(self, generation: int) -> tuple[str, ...]:
        """Return the devices that are bound to the container of a generation."""
        moved = self.move is not None and self.move.generation == generation
        return self.move.devices if self.move is not None and moved else self.devices

    def owns(self, host_id: str, generation: int) -> bool:
        """Tell whether the container or reservation of this host and generation is the job's."""
        here = (self.host_id, self.generation)
        there = (self.move.host_id, self.move.generation) if self.move else None
        return (host_id, generation) in (here, there)

    @field_validator("spec", mode="before")
    @classmethod
    def _spec_is_text(cls, value: object) -> object:
        return _recorded(ModelSpec, value)

    @field_validator("dataset_spec", mode="before")
    @classmethod
    def _dataset_spec_is_text(cls, value: object) -> object:
        return _recorded(DatasetSpec, value)


def jobs_of(documents: Iterable[Document]) -> list[JobRecord]:
    """Return stored jobs; a spec that several of them have is read once, as that takes longest."""
    specs: dict[str, ModelSpec | None] = {}
    jobs: list[JobRecord] = []
    for document in documents:
        text = document.get("spec")
        if isinstance(text, str) and text in specs:
            job = JobRecord.model_validate({**document, "spec": None})
            job = job.model_copy(update={"spec": specs[text]})
        else:
            job = JobRecord.model_validate(document)
        if isinstance(text, str):
            specs[text] = job.spec
        jobs.append(job)
    return jobs


class Reservation(Allocation):
    """Capacity of a host held for one generation of a job."""

    token: str
    """The mark of the scheduling pass that made it."""


def reservations_of(wanted: Iterable[Allocation], token: str) -> tuple[Reservation, ...]:
    """Return the reservations that one scheduling pass makes."""
    return tuple(Reservation(**dict(one), token=token) for one in wanted)


MEASURED_AFTER_S = 3.0
"""Seconds after which a measurement that arrives is one from after a moment: workers measure every
two seconds."""


class FreedDevices(Record):
    """What a job held on devices until it gave it back."""

    devices: Mapping[str, int]
    """Bytes by uuid."""
    at: datetime
    """By the database's clock."""
    counted: bool
    """False if the job held nothing yet when the last measurement before `at` came."""


class DrainRecord(Record):
    """How a host is drained."""

    move: bool = False
    deadline_at: datetime | None = None
    done: bool = False


CALCULATED = (
    "total", "room", "held_on_devices", "used_on_devices", "foreign_on_devices",
    "lasting_room", "used_part", "held_by", "memory_of_models",
)  # fmt: skip
"""What is calculated from the other fields of a host, when it is first asked for."""


class HostRecord(Record):
    """One host, with everything reserved on it."""

    host_id: str = Field(alias="_id")
    liveness: Liveness = Liveness.ONLINE
    admission: Admission = Admission.OPEN
    incarnation: str | None = None
    begun_known: bool = True
    """False: operations that its earlier incarnations were given may have begun unreported."""
    slots: int | None = 0
    """Most jobs at the same time; None: only the capacity limits them."""
    slots_used: int = 0
    capacity: HostCapacity | None = None
    """None until a worker that announces it has come online."""
    readings: tuple[DeviceReading, ...] = ()
    """The last measurement of each device."""
    memory_used: int | None = None
    """Bytes of its memory in use by anyone at the last heartbeat."""
    measured_at: datetime | None = None
    """When it came, by the database's clock."""
    measured_jobs: tuple[str, ...] = ()
    """Jobs whose models were held in memory then."""
    freed: tuple[FreedDevices, ...] = ()
    """What was given back so lately that the last measurement may still count it."""
    labels: dict[str, str] = Field(default_factory=dict)
    images: frozenset[str] = frozenset()
    """Full references of images that it has, as its worker tells."""
    datasets: frozenset[str] = frozenset()
    """Volumes and folders that it has and that may be mounted, likewise."""
    engine: EngineFacts | None = None
    reservations: tuple[Reservation, ...] = ()
    drain: DrainRecord | None = None
    running: int = 0
    fenced_off: dict[str, int] = Field(default_factory=dict)
    """Its late reports, counted by reason; a boot of the worker does not reset them."""
    last_seen: datetime | None = None

    @cached_property
    def total(self) -> Room:
        """What the host would have for jobs if it were empty."""
        return total_room(self.slots, self.capacity)

    @cached_property
    def room(self) -> Room:
        """What it has left, by its reservations and by what was measured."""
        return room_left(self.total, self.reservations, self.used_on_devices, self.taints)

    @property
    def taints(self) -> Mapping[str, DeviceTaint]:
        """The tainted devices by uuid, as the last heartbeat told."""
        return taints_of(self.readings)

    @cached_property
    def held_on_devices(self) -> Counter[str]:
        """Bytes that models in memory hold, by device."""
        return held_on_devices(self.reservations)

    @cached_property
    def memory_of_models(self) -> int:
        """Bytes of host memory that are held for models in memory, besides their containers."""
        return sum(one.resident.memory for one in self.reservations if one.resident)

    @cached_property
    def used_on_devices(self) -> Mapping[str, int]:
        """Bytes in use by anyone, as last measured, by device, without what was freed since.

        Memory that a model has just left would count as that of somebody else.
        """
        used = {one.uuid: one.memory_used for one in self.readings}
        for freed in self.freed:
            if self._may_count(freed):
                for uuid in used.keys() & freed.devices.keys():
                    used[uuid] = max(0, used[uuid] - freed.devices[uuid])
        return used

    def _may_count(self, freed: FreedDevices) -> bool:
        """Tell whether the last measurement may be from while this was held."""
        if self.measured_at is None:
            return True
        before_s = (self.measured_at - freed.at).total_seconds()
        # The clock counts milliseconds: at the same time nobody knows which came first.
        return before_s <= MEASURED_AFTER_S if before_s > 0 else freed.counted

    @cached_property
    def foreign_on_devices(self) -> Counter[str]:
        """Bytes that others than jobs use, as measured, by device: unloading does not free them."""
        held = self.held_on_devices
        return Counter(
            {uuid: max(0, amount - held[uuid]) for uuid, amount in self.used_on_devices.items()}
        )

    @cached_property
    def lasting_room(self) -> Room:
        """What it will have left once the jobs that end by themselves have ended."""
        temporary = {one.job_id for one in self.reservations if one.temporary}
        return self.without(temporary).room if temporary else self.room

    def without(self, leaving: Collection[str]) -> Self:
        """Return the host as it will be once these jobs have left it."""
        staying = tuple(one for one in self.reservations if one.job_id not in leaving)
        # What others use stays too, as far as anybody knows.
        used = held_on_devices(staying) + self.foreign_on_devices
        changes: Document = {
            "reservations": staying,
            "freed": (),
            "readings": tuple(
                one.model_copy(update={"memory_used": used[one.uuid]}) for one in self.readings
            ),
        }
        return self.model_copy(update=changes)

    @property
    def is_open(self) -> bool:
        """True if it takes jobs at all."""
        return self.liveness is Liveness.ONLINE and self.admission is Admission.OPEN

    @cached_property
    def used_part(self) -> float:
        """The part of the host that jobs hold, 0 to 1: of what they hold most of."""
        return used_part(self.total, self.room)

    @cached_property
    def held_by(self) -> Mapping[str, Reservation]:
        """What each job holds here: no job has two reservations on one host."""
        return {one.job_id: one for one in self.reservations}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy; what was calculated for the original does not go with it."""
        copied = super().model_copy(update=update, deep=deep)
        for name in CALCULATED:
            copied.__dict__.pop(name, None)
        return copied

    def with_reserved(self, made: Sequence[Reservation]) -> Self:
        """Return the host as it is once these reservations are written."""
        return self.model_copy(
            update={
                "reservations": (*self.reservations, *made),
                "slots_used": self.slots_used + sum(one.slots for one in made),
            }
        )

    def reservation(self, job_id: str, generation: int) -> Reservation | None:
        """Return what a generation of a job holds on this host."""
        held = self.held_by.get(job_id)
        return held if held is not None and held.generation == generation else None


class JobLine(Record):
    """A job and its first open operations, in order of acceptance."""

    job: JobRecord
    operations: tuple[OperationRecord, ...]


class DeadLetter(Record):
    """A message that could not be processed, with the reason."""

    dead_letter_id: str = Field(alias="_id")
    reason: str
    detail: str = ""
    queue: str = ""
    routing_key: str = ""
    headers: dict[str, str] = Field(default_factory=dict)
    sender: str | None = None
    """The user that RabbitMQ has verified; None if the message named no user."""
    from_modelyard: bool = False
    """True if a gateway or a dispatcher sent it: only then its type is trusted."""
    buried: bool = False
    """True if a process of Modelyard dead-lettered it; False if RabbitMQ did."""
    message_id: str | None = None
    message_type: str | None = None
    message_priority: int = 0
    content_type: str | None = None
    content_encoding: str | None = None
    payload: bytes = b""
    """The whole payload, or its beginning if it was too large; empty if the query left it out."""
    payload_bytes: int = 0
    """Size of the whole payload."""
    replays: int = 0
    replayed_at: datetime | None = None
    recorded_at: datetime | None = None
