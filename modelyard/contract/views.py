"""How the HTTP API shows operations, jobs and hosts: one view each."""

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import (
    Field,
)

from modelyard.contract.capacity.offers import DeviceReading
from modelyard.contract.errors import ErrorInfo
from modelyard.contract.messages import EngineFacts, Message, Progress
from modelyard.contract.states import (
    Admission,
    JobState,
    Liveness,
    OperationState,
    Phase,
    Verb,
)


class Links(Message):
    """Addresses of related resources."""

    self: str
    job: str | None = None
    result: str | None = None


class OperationView(Message):
    """An operation as clients see it."""

    operation_id: str
    job_id: str | None
    operation_type: Verb | None
    """This and `job_id` are null only if a message was rejected because they were not valid."""
    state: OperationState
    model: str | None = None
    dataset: str | None = None
    phase: Phase | None = None
    progress: Progress | None = None
    waiting_for: tuple[str, ...] = ()
    """While QUEUED: why it has not been dispatched."""
    host_id: str | None = None
    container_id: str | None = None
    generation: int | None = None
    epoch: int = 0
    priority: int = 0
    timeout_s: float | None = None
    queue_timeout_s: float | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    source: Literal["http", "amqp", "system"] = "http"
    """`system`: Modelyard itself submitted it, for `reason`."""
    reason: str | None = None
    """Only with `system`: `recovery`, `move`, `drain`, `idle`, `load_cut_short`,
    `on_demand:<operation>`, `evicted_for:<operation>` or `relocated_for:<operation>`."""
    retry_of: str | None = None
    """The operation that this one runs again."""
    payload_mismatch: bool = False
    """True if another request came over AMQP with the same idempotency key: it has no effect."""
    cancel_requested: bool = False
    not_before: datetime | None = None
    """While QUEUED after a failed attempt: the earliest time of the next attempt."""
    error: ErrorInfo | None = None
    """Why it ended; while QUEUED, why its last attempt failed."""
    result_bytes: int | None = None
    """Size of the stored result; null if there is none."""
    result_type: str | None = None
    """Media type of the result: `application/json`, or what the model said."""
    result_sha256: str | None = None
    """SHA-256 of the result in hexadecimal digits; null if an older version stored it."""
    accepted_at: datetime | None = None
    dispatched_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    links: Links


class FootprintView(Message):
    """What a model with one image was measured to take on one kind of device."""

    image: str
    device: str = ""
    """What the device is, such as `NVIDIA H100 80GB HBM3`; empty for a model without devices."""
    memory: int | None = None
    """Bytes of host memory that the model takes beyond what its container uses without it: the most
    of the last 10 loads. null: not measured."""
    device_memory: int | None = None
    """Bytes on each of its devices, likewise."""
    loads: int = 0
    """Loads that were measured."""
    last_seen: datetime | None = None
    """When it was measured last."""


class HolderView(Message):
    """A job that holds what an operation lacks on a host: its model in memory, or its container."""

    job_id: str
    model: str | None = None
    frees: dict[str, int] = Field(default_factory=dict)
    """Bytes by device, or `memory` of the host, that its unload or its end would free."""
    cpus: float = 0.0
    """Processors that its end would free; 0 if its unload is enough."""
    slots: int = 0
    """Slots that its end would free; 0 if its unload is enough."""
    stays: str | None = None
    """Why it does not make room for others; null: it does."""


class HostVerdict(Message):
    """Whether a host would take an operation now."""

    host_id: str
    fits: bool
    refusal: str | None = None
    """The first rule that refuses, with its numbers."""
    to_fetch: tuple[str, ...] = ()
    """What it does not have at hand and would have to get first: `image`, `dataset`."""
    holders: tuple[HolderView, ...] = ()
    """Who holds what it lacks there, at most 20, the largest first."""


class Outlook(Message):
    """Whether an operation can start now, and what it waits for."""

    reasons: tuple[str, ...]
    """Sentences, the most important first; never empty."""
    ahead_in_line: int = 0
    """Operations of its job that go before it."""
    next_in_line: str | None = None
    """The first of them."""
    ahead_in_waiting_room: int | None = None
    """More urgent operations of other jobs that wait for a host; of a LOAD that waits for memory on
    its host, the loads that wait there and the TEMPs that wait for any. Null if it does not wait
    so. 1,000 also stands for more."""
    hosts: tuple[HostVerdict, ...] = ()
    """Each host, at most 100, if the operation needs a place on one."""
    estimated_start_s: float | None = None
    """Seconds until it starts: until what goes before it in line has ended, or until the TEMPs that
    run have given back enough, by how long such operations took lately or, if that is not known,
    by their `timeout_s`. Null: not known."""


class Explanation(Outlook):
    """Why an operation has not started, as of now."""

    operation_id: str
    state: OperationState


class DryRunOutcome(StrEnum):
    """What would become of a request now."""

    REJECTED = "rejected"
    """It would be accepted, and then be REJECTED with `error`."""
    SUCCEEDS = "succeeds"
    """It would succeed as it is: what it asks for holds already."""
    STARTS = "starts"
    """It would be sent to `host_id` at once; null: the fleet has more than 100 hosts, and the
    dispatcher chooses."""
    LOADS_FIRST = "loads_first"
    """Its job's model would be loaded on `host_id` first, on demand."""
    WAITS = "waits"
    """It would stay QUEUED, for `reasons`."""
    REPEATS = "repeats"
    """Its idempotency key is that of the operation `operation_id`, so nothing new would be made."""


class DryRun(Outlook):
    """What would become of a request that is not made, as of now."""

    outcome: DryRunOutcome
    job_id: str
    operation_type: Verb
    error: ErrorInfo | None = None
    host_id: str | None = None
    devices: tuple[str, ...] = ()
    """The devices of that host which its container sees, by uuid."""
    operation_id: str | None = None
    """The operation that has its idempotency key already."""


class JobView(Message):
    """A job as clients see it."""

    job_id: str
    state: JobState
    model: str | None = None
    dataset: str | None = None
    host_id: str | None = None
    container_id: str | None = None
    generation: int = 0
    error: ErrorInfo | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    links: dict[str, str] = Field(default_factory=dict)


class DrainView(Message):
    """The progress of a host's drain."""

    move: bool
    """True if Modelyard moves the host's live jobs to other hosts."""
    deadline: datetime | None = None
    """When Modelyard ends the operations and jobs that are left; null: it lets them finish."""
    done: bool = False
    """True once no job and no operation is left on the host."""


class Amount(Message):
    """How much of something a host has for jobs, and how much of it they hold."""

    allocatable: float
    allocated: float
    resident: float = 0.0
    """The part of `allocated` that models hold only while they are loaded."""
    reserved: float = 0.0
    """What is kept for the system; `allocatable` is what remains."""
    measured: float | None = None
    """What was in use by anyone at the last heartbeat, the system and other programs on the host
    among them; null: not measured, as processors are not."""


class DeviceView(Message):
    """A device of a host: an accelerator with memory of its own."""

    uuid: str
    index: int
    model: str
    memory: int
    """Bytes that programs can use."""
    allocated: int
    """Bytes that loaded models hold."""
    jobs: tuple[str, ...] = ()
    """Jobs whose containers see the device."""
    resident: dict[str, int] = Field(default_factory=dict)
    """Bytes that each job holds whose model is loaded, or being loaded."""
    measured: DeviceReading | None = None
    """What the last heartbeat said; null if nothing is measured."""


class HostView(Message):
    """A host as clients see it."""

    host_id: str
    liveness: Liveness
    admission: Admission
    labels: dict[str, str] = Field(default_factory=dict)
    drain: DrainView | None = None
    """Set while `admission` is DRAINING."""
    slots: int | None = None
    """Most jobs at the same time; null: only its processors, memory and devices limit them."""
    slots_used: int
    cpus: Amount | None = None
    """Processors for containers; null if the host's worker does not tell. So is `memory`."""
    memory: Amount | None = None
    """Bytes of memory for containers, and for models while they are loaded."""
    devices: tuple[DeviceView, ...] = ()
    jobs: tuple[str, ...] = ()
    running: int = 0
    fenced_off: dict[str, int] = Field(default_factory=dict)
    """Late reports of the host that had no effect, counted by reason since it first came online.

    Reasons are `other_host`, `other_epoch`, `other_job`, `other_incarnation`, `overtaken`,
    `illegal` and `unknown_operation`; there may be more.
    """
    images: tuple[str, ...] = ()
    """Full references of images that its engine has and that may run there, at most 256; only where
    one host is read."""
    datasets: tuple[str, ...] = ()
    """Volumes and folders under its dataset roots that may be mounted there, likewise."""
    incarnation: str | None = None
    engine: EngineFacts | None = None
    last_seen: datetime | None = None
