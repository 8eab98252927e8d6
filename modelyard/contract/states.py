"""The states of operations, jobs and hosts, and the tables of their legal transitions.

A state changes only through a write that names the states it may come from. The tables in this file
say which states those are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Verb(StrEnum):
    """What an operation asks of its job. Every verb is idempotent."""

    DEPLOY_CREATE = "DEPLOY_CREATE"
    """Place the job on a host, pull the image, create the container; the model stays on disk."""

    DEPLOY_LOAD = "DEPLOY_LOAD"
    """Bring the model into memory and wait until it answers ready."""

    INFER = "INFER"
    """Send the request's input into the container and store the answer."""

    DEPLOY_UNLOAD = "DEPLOY_UNLOAD"
    """Take the model out of memory, after the running inference has ended."""

    TERMINATE = "TERMINATE"
    """Remove the container and free its reservation."""

    TEMP = "TEMP"
    """One shot: create, load, infer, store the result, remove."""


class OperationState(StrEnum):
    """Where one operation stands. Terminal states never change."""

    QUEUED = "QUEUED"
    """Recorded and waiting for its turn among the job's operations, or for a host with room.

    The dispatcher's intake records it in this state; the scheduler moves it on.
    """

    DISPATCHED = "DISPATCHED"
    """The scheduler chose a host and published the command under a new epoch.

    The host's worker moves it on with its first report.
    """

    RUNNING = "RUNNING"
    """The worker has accepted the command and works on it; `phase` says at which step.

    The worker's reports move it to a terminal state.
    """

    SUCCEEDED = "SUCCEEDED"
    """The verb has taken effect; a result is stored if there is one. Set on the worker's report, or
    by the scheduler where a verb already holds and there is no container to ask."""

    FAILED = "FAILED"
    """It was tried and did not work; `error` says why. Set on the worker's report, or by the
    dispatcher where the host can't report any more."""

    TIMED_OUT = "TIMED_OUT"
    """It ran for longer than its `timeout_s`. Set on the worker's report, or by the sweep."""

    CANCELLED = "CANCELLED"
    """A client cancelled it before it ended, or what came behind it made it pointless. Set by the
    sweep, by the scheduler or on the worker's report."""

    REJECTED = "REJECTED"
    """It could never run: the request or the job's state forbids it. Set by intake or scheduler."""

    EXPIRED = "EXPIRED"
    """It stayed QUEUED for longer than its `queue_timeout_s`. Set by the dispatcher's sweep."""

    @property
    def terminal(self) -> bool:
        """True if no transition leads out of this state."""
        return not OPERATION_TRANSITIONS[self]


class Phase(StrEnum):
    """What a RUNNING operation is doing now."""

    PULLING = "pulling"
    CREATING = "creating"
    STARTING = "starting"
    LOADING = "loading"
    INFERRING = "inferring"
    UNLOADING = "unloading"
    SAVING = "saving"
    REMOVING = "removing"


class JobState(StrEnum):
    """What is true of a job's container and its model."""

    NONE = "NONE"
    """A request named the job, but it was never placed on a host."""

    CREATED = "CREATED"
    """It has a container on a host; the model is not in memory."""

    LOADED = "LOADED"
    """Its model is in memory and answers."""

    TERMINATED = "TERMINATED"
    """Its container was removed and its reservation freed."""

    FAILED = "FAILED"
    """Creating or loading it failed, or its container died; the container was removed."""

    LOST = "LOST"
    """Its host is gone, and with it the container."""

    @property
    def live(self) -> bool:
        """True if the job has a container and holds a reservation."""
        return self in (JobState.CREATED, JobState.LOADED)


class SystemReason(StrEnum):
    """Why the dispatcher submitted an operation itself: the first word of the `reason`.

    The id of the operation for which it did so may follow: `evicted_for:0192...`.
    """

    ON_DEMAND = "on_demand"
    """A LOAD that was put before an inference."""
    EVICTED_FOR = "evicted_for"
    """An UNLOAD that makes room for another model."""
    RELOCATED_FOR = "relocated_for"
    """A CREATE that brings an unloaded job to where its model has room, for the LOAD behind it."""
    IDLE = "idle"
    """An UNLOAD of a model that nobody used for a while."""
    LOAD_CUT_SHORT = "load_cut_short"
    """An UNLOAD that stops a container whose LOAD ended without a word about the model."""
    MOVE = "move"
    RECOVERY = "recovery"
    DRAIN = "drain"

    def about(self, operation_id: str) -> str:
        """Return the reason with the operation for which it is."""
        return f"{self}:{operation_id}"

    def gave(self, reason: str | None) -> bool:
        """Tell whether this is the first word of a reason."""
        return (reason or "").partition(":")[0] == self


class Liveness(StrEnum):
    """What the heartbeats of a host say about it."""

    ONLINE = "ONLINE"
    SUSPECT = "SUSPECT"
    """No heartbeat for 15 seconds: the host gets no new placements and keeps its work."""
    LOST = "LOST"
    """No heartbeat for 60 seconds: operations that may run on other hosts go there, and the host's
    live jobs are LOST."""


class Admission(StrEnum):
    """What the operators of the fleet allow on a host."""

    OPEN = "OPEN"
    CORDONED = "CORDONED"
    """Takes no new jobs; the jobs on it go on."""
    DRAINING = "DRAINING"
    """Takes no new jobs; the jobs on it finish, move or, past a deadline, are ended."""


_ENDS_OF_WORK = frozenset(
    {
        OperationState.SUCCEEDED,
        OperationState.FAILED,
        OperationState.TIMED_OUT,
        OperationState.CANCELLED,
    },
)

OPERATION_TRANSITIONS: Mapping[OperationState, frozenset[OperationState]] = MappingProxyType(
    {
        OperationState.QUEUED: frozenset(
            {
                OperationState.DISPATCHED,
                OperationState.SUCCEEDED,
                OperationState.CANCELLED,
                OperationState.REJECTED,
                OperationState.EXPIRED,
            },
        ),
        # Back to QUEUED only with epoch + 1, after a failure of the infrastructure. DISPATCHED may
        # go straight to a terminal state, because a report may overtake or replace an earlier one:
        # each report carries the full state.
        OperationState.DISPATCHED: _ENDS_OF_WORK | {OperationState.RUNNING, OperationState.QUEUED},
        OperationState.RUNNING: _ENDS_OF_WORK | {OperationState.RUNNING, OperationState.QUEUED},
        OperationState.SUCCEEDED: frozenset(),
        OperationState.FAILED: frozenset(),
        OperationState.TIMED_OUT: frozenset(),
        OperationState.CANCELLED: frozenset(),
        OperationState.REJECTED: frozenset(),
        OperationState.EXPIRED: frozenset(),
    },
)

JOB_TRANSITIONS: Mapping[JobState, frozenset[JobState]] = MappingProxyType(
    {
        # A TEMP leads to TERMINATED: its container is created and removed within one operation.
        JobState.NONE: frozenset({JobState.CREATED, JobState.TERMINATED, JobState.FAILED}),
        JobState.CREATED: frozenset(
            {JobState.LOADED, JobState.TERMINATED, JobState.FAILED, JobState.LOST},
        ),
        JobState.LOADED: frozenset(
            {JobState.CREATED, JobState.TERMINATED, JobState.FAILED, JobState.LOST},
        ),
        JobState.TERMINATED: frozenset({JobState.CREATED, JobState.FAILED}),
        JobState.FAILED: frozenset({JobState.CREATED, JobState.TERMINATED}),
        JobState.LOST: frozenset({JobState.CREATED, JobState.TERMINATED, JobState.FAILED}),
    },
)


@dataclass(frozen=True, slots=True)
class VerbRule:
    """The job states that a verb may start from, the one it leads to, and what it needs."""

    starts_from: frozenset[JobState]
    """Job states in which the verb has work to do."""
    holds_in: frozenset[JobState]
    """Job states in which the verb already holds: it succeeds and changes nothing."""
    leads_to: JobState
    places: bool
    """True if it needs a new reservation when it starts."""
    shared: bool = False
    """True if several of them may run on one job at the same time."""


_PLACEABLE = frozenset({JobState.NONE, JobState.TERMINATED, JobState.FAILED, JobState.LOST})

VERB_RULES: Mapping[Verb, VerbRule] = MappingProxyType(
    {
        Verb.DEPLOY_CREATE: VerbRule(
            starts_from=_PLACEABLE,
            holds_in=frozenset({JobState.CREATED}),
            leads_to=JobState.CREATED,
            places=True,
        ),
        Verb.DEPLOY_LOAD: VerbRule(
            starts_from=frozenset({JobState.CREATED}),
            holds_in=frozenset({JobState.LOADED}),
            leads_to=JobState.LOADED,
            places=False,
        ),
        Verb.INFER: VerbRule(
            starts_from=frozenset({JobState.LOADED}),
            holds_in=frozenset(),
            leads_to=JobState.LOADED,
            places=False,
            shared=True,
        ),
        Verb.DEPLOY_UNLOAD: VerbRule(
            starts_from=frozenset({JobState.LOADED}),
            holds_in=frozenset({JobState.CREATED}),
            leads_to=JobState.CREATED,
            places=False,
        ),
        Verb.TERMINATE: VerbRule(
            starts_from=frozenset({JobState.CREATED, JobState.LOADED}),
            holds_in=frozenset(_PLACEABLE),
            leads_to=JobState.TERMINATED,
            places=False,
        ),
        Verb.TEMP: VerbRule(
            starts_from=frozenset({JobState.NONE, JobState.TERMINATED, JobState.FAILED}),
            holds_in=frozenset(),
            leads_to=JobState.TERMINATED,
            places=True,
        ),
    },
)


def verbs_between(state: JobState, wanted: frozenset[JobState]) -> tuple[Verb, ...]:
    """Return the fewest verbs that bring a job from its state to one that is wanted.

    Empty if there are none, or none is needed.
    """
    ways: dict[JobState, tuple[Verb, ...]] = {state: ()}
    for at in (found := [state]):
        if at in wanted:
            return ways[at]
        for verb, rule in VERB_RULES.items():
            if at in rule.starts_from and verb is not Verb.TEMP and rule.leads_to not in ways:
                ways[rule.leads_to] = (*ways[at], verb)
                found.append(rule.leads_to)
    return ()


def operation_sources(target: OperationState) -> frozenset[OperationState]:
    """Return the states from which `target` may be reached, for the guard of a write."""
    return frozenset(s for s, ends in OPERATION_TRANSITIONS.items() if target in ends)


def job_sources(target: JobState) -> frozenset[JobState]:
    """Return the job states from which `target` may be written, itself among them.

    `target` itself is included because a report that arrives twice writes the same state twice.
    """
    return frozenset({target} | {s for s, ends in JOB_TRANSITIONS.items() if target in ends})


REPORTED_STATES = _ENDS_OF_WORK | {OperationState.RUNNING}
"""What a worker may report of an operation. All other states are decisions of the dispatcher: so no
worker puts an operation back into the queue, past the limits on retries and deadlines."""

REPORTED_JOB_STATES = frozenset(
    {JobState.CREATED, JobState.LOADED, JobState.TERMINATED, JobState.FAILED}
)
"""What a worker may report of a job: what it sees of the container. Only the dispatcher finds that
a host is LOST."""

TERMINAL_STATES = frozenset(s for s in OperationState if not OPERATION_TRANSITIONS[s])
