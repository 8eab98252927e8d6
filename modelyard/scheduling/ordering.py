"""Order within a job: which of its open operations may start now, and how.

A job's line holds its open operations in the order of acceptance. The rules are pure functions.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from modelyard.contract.catalog.entries import DatasetSpec, ModelSpec, Profile
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.states import (
    VERB_RULES,
    JobState,
    OperationState,
    SystemReason,
    Verb,
    VerbRule,
    verbs_between,
)
from modelyard.scheduling.leaving import TAKES_OUT
from modelyard.store.records import JobLine, JobRecord, OperationRecord

CONTAINER_ID = re.compile(r"[0-9a-f]{12,64}")
"""A container's id or a prefix of it: Docker's short form has 12 characters."""


@dataclass(frozen=True, slots=True)
class CatalogEntries:
    """The catalog entries that the operations of this pass name."""

    models: Mapping[str, ModelSpec]
    datasets: Mapping[str, DatasetSpec]


@dataclass(frozen=True, slots=True)
class Reject:
    """The operation can never run: reject it."""

    operation: OperationRecord
    error: ErrorInfo


@dataclass(frozen=True, slots=True)
class AlreadySatisfied:
    """The verb already holds and the job has no host: the operation succeeds without a command."""

    operation: OperationRecord


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Dispatch the operation to the host that the job is on."""

    operation: OperationRecord
    job: JobRecord
    host_id: str
    unwanted: bool = False
    """True if nobody needs it any more: it loads a model, and what follows takes it out again."""


class TerminateBehind(Enum):
    """How close a TERMINATE waits behind an operation that needs a placement."""

    NEXT = "next"
    """The TERMINATE comes directly after it: cancel the operation if no host has room now."""
    LATER = "later"
    """Other operations come between: wait for room, but cancel if no known host could ever fit."""


@dataclass(frozen=True, slots=True)
class PlaceAndDispatch:
    """Place the job on a host as a new generation, and dispatch the operation there."""

    operation: OperationRecord
    job: JobRecord
    spec: ModelSpec
    dataset: DatasetSpec | None
    ended_by: TerminateBehind | None = None
    """Set if a TERMINATE waits behind the operation."""


@dataclass(frozen=True, slots=True)
class LoadFirst:
    """The operation needs the model in memory: load it before, as its model says `on_demand`."""

    operation: OperationRecord
    job: JobRecord


@dataclass(frozen=True, slots=True)
class Relocate:
    """Create the unloaded job anew where its model has room now."""

    operation: OperationRecord
    job: JobRecord
    spec: ModelSpec


Decision = Reject | AlreadySatisfied | Dispatch | PlaceAndDispatch | LoadFirst | Relocate


def next_decisions(line: JobLine, catalog: CatalogEntries) -> list[Decision]:
    """Return the decisions for the operations of a line that may start now, in their order.

    An operation may start when all operations before it have ended. Inferences may run together,
    up to the model's `max_concurrency`; any other operation behind them waits for all of them.
    An operation whose cancel is recorded does not start: it is about to be ended, also if that is
    left to a new leader, which would otherwise dispatch it before it looks at cancels.
    """
    decisions: list[Decision] = []
    inferring = 0
    for operation in _schedulable(line):
        shared = operation.shared
        if operation.state is not OperationState.QUEUED or operation.resting:
            if not shared:
                break
            inferring += 1  # one that waits for its retry uses up a slot, and so keeps its place
            continue
        if operation.cancel_requested or _has_to_wait(operation, inferring, line):
            break
        decision = (
            _load_first(line.job, operation)
            or _relocate(line.job, operation)
            or _decide(line.job, operation, catalog)
        )
        decisions.append(_with_what_follows(decision, line))
        if isinstance(decision, Reject):
            continue  # a rejection changes nothing, so the next operation may start
        if not shared or isinstance(decision, LoadFirst):
            break
        inferring += 1
    return decisions


def shared_starts(line: JobLine) -> list[Dispatch]:
    """Return the operations at the head of a line that share their job and may start now.

    None behind an operation that needs any other decision: that is left to a pass with all facts.
    """
    starts: list[Dispatch] = []
    for decision in next_decisions(line, CatalogEntries({}, {})):
        if not isinstance(decision, Dispatch) or not decision.operation.shared:
            break
        starts.append(decision)
    return starts


def _schedulable(line: JobLine) -> tuple[OperationRecord, ...]:
    """Return the line, or nothing while a restoration is about to put its operations in front."""
    return () if line.job.recovery is not None else line.operations


def _with_what_follows(decision: Decision, line: JobLine) -> Decision:
    if isinstance(decision, PlaceAndDispatch):
        return replace(decision, ended_by=_ended_by(line, decision.operation))
    if isinstance(decision, Dispatch):
        return replace(decision, unwanted=_is_unwanted(line, decision.operation))
    return decision


def _has_to_wait(operation: OperationRecord, inferring: int, line: JobLine) -> bool:
    """Tell whether an operation waits for others, `inferring` of which go before it."""
    if operation.shared:
        return inferring >= _concurrency(line.job)
    # Those behind it may run too: it was put in front when they did, or just before they started.
    return inferring > 0 or any(one.state is not OperationState.QUEUED for one in line.operations)


def _is_unwanted(line: JobLine, load: OperationRecord) -> bool:
    """Tell whether a LOAD that has no room is only in the way of what waits behind it."""
    if load.verb is not Verb.DEPLOY_LOAD:
        return False
    behind = [one.verb for one in line.operations if one is not load]
    if behind and behind[0] in TAKES_OUT:
        return True
    return SystemReason.ON_DEMAND.gave(load.reason) and Verb.INFER not in behind


def _ended_by(line: JobLine, first: OperationRecord) -> TerminateBehind | None:
    behind = [one.verb for one in line.operations[line.operations.index(first) + 1 :]]
    if Verb.TERMINATE not in behind:
        return None
    return TerminateBehind.NEXT if behind[0] is Verb.TERMINATE else TerminateBehind.LATER


def _concurrency(job: JobRecord) -> int:
    return job.spec.max_concurrency if job.spec else 1


def _decide(job: JobRecord, operation: OperationRecord, catalog: CatalogEntries) -> Decision:
    verb = operation.verb
    if verb is None:
        return Reject(operation, ErrorInfo.of(ErrorCode.INVALID_REQUEST))
    rule = VERB_RULES[verb]
    error = (
        _state_error(job, verb)
        or _mismatch(job, operation)
        or _other_container(job, operation, verb)
        or _loaded_since(job, operation)
    )
    if error is not None:
        return Reject(operation, error)
    if job.host_id is not None and (not rule.places or _is_placed(job, operation, rule)):
        return Dispatch(operation, job, job.host_id)
    if rule.places:
        return _place(job, operation, verb, catalog)
    if job.state in rule.holds_in:
        return AlreadySatisfied(operation)
    return Reject(operation, ErrorInfo.of(ErrorCode.CONTAINER_MISSING))


def _load_first(job: JobRecord, operation: OperationRecord) -> LoadFirst | None:
    """Return the decision to load the model before, if its inference asks for that."""
    asks = operation.verb is Verb.INFER and job.state is JobState.CREATED
    if not asks or job.host_id is None or job.spec is None or not job.spec.residency.on_demand:
        return None
    wrong = _mismatch(job, operation) or _other_container(job, operation, Verb.INFER)
    return None if wrong else LoadFirst(operation, job)


def _is_placed(job: JobRecord, operation: OperationRecord, rule: VerbRule) -> bool:
    """Tell whether a placing verb needs no new placement: it holds, or it is dispatched again."""
    if job.state in rule.holds_in:
        return True
    return job.current is not None and job.current.operation_id == operation.operation_id


def _relocate(job: JobRecord, operation: OperationRecord) -> Relocate | Reject | None:
    """Return the decision to bring an unloaded job elsewhere, if that has not begun yet.

    It is rejected if the job is not unloaded any more: a job that is down must not be created anew
    by it.
    """
    meant = operation.verb is Verb.DEPLOY_CREATE and operation.source == "system"
    if not meant or not SystemReason.RELOCATED_FOR.gave(operation.reason):
        return None
    begun = job.current is not None and job.current.operation_id == operation.operation_id
    if begun:
        return None
    if job.state is not JobState.CREATED:
        message = f"A relocation starts from CREATED; job {job.job_id!r} is {job.state}."
        return Reject(operation, ErrorInfo.of(ErrorCode.INVALID_JOB_STATE, message))
    if job.host_id is None or job.spec is None:
        return None
    return None if _mismatch(job, operation) else Relocate(operation, job, job.spec)


def _place(
    job: JobRecord, operation: OperationRecord, verb: Verb, catalog: CatalogEntries
) -> PlaceAndDispatch | Reject:
    if operation.source == "system" and job.spec is not None:
        # A restoration uses the specs that the job had, whatever the catalog says now.
        return PlaceAndDispatch(operation, job, job.spec, job.dataset_spec)
    spec = catalog.models.get(operation.model or "")
    if spec is None:
        message = f"The catalog has no model {operation.model!r}."
        return Reject(operation, ErrorInfo.of(ErrorCode.UNKNOWN_MODEL, message))
    dataset = catalog.datasets.get(operation.dataset or "")
    if operation.dataset is not None and dataset is None:
        message = f"The catalog has no dataset {operation.dataset!r}."
        return Reject(operation, ErrorInfo.of(ErrorCode.UNKNOWN_DATASET, message))
    error = _profile_error(operation, verb, spec, dataset)
    return Reject(operation, error) if error else PlaceAndDispatch(operation, job, spec, dataset)


def _profile_error(
    operation: OperationRecord, verb: Verb, spec: ModelSpec, dataset: DatasetSpec | None
) -> ErrorInfo | None:
    if spec.profile is Profile.BATCH:
        if verb is not Verb.TEMP:
            message = f"Model {spec.name!r} has the profile batch, which knows only TEMP."
            return ErrorInfo.of(ErrorCode.UNSUPPORTED_VERB, message)
        if operation.feeds:
            message = f"Model {spec.name!r} has the profile batch, which reads only its dataset."
            return ErrorInfo.of(ErrorCode.UNEXPECTED_INPUT, message)
        return None
    if verb is Verb.TEMP and not operation.feeds and dataset is None:
        return ErrorInfo.of(ErrorCode.MISSING_INPUT, "TEMP needs an input or a dataset.")
    return None


def _state_error(job: JobRecord, verb: Verb) -> ErrorInfo | None:
    rule = VERB_RULES[verb]
    if job.state in rule.starts_from | rule.holds_in:
        return None
    wanted = " or ".join(sorted(rule.starts_from))
    way = () if verb in TAKES_OUT else verbs_between(job.state, rule.starts_from)
    before = " and ".join(way)
    return ErrorInfo(
        code=ErrorCode.INVALID_JOB_STATE,
        message=f"{verb} starts from {wanted}; job {job.job_id!r} is {job.state}{_why(job)}."
        + (f" Before it: {before}." if before else ""),
        detail={"job_state": job.state, "starts_from": sorted(rule.starts_from)},
    )


def _why(job: JobRecord) -> str:
    if job.state is not JobState.FAILED or job.error is None:
        return ""
    return f" ({job.error.code}: {job.error.message.rstrip('.')})"


def _mismatch(job: JobRecord, operation: OperationRecord) -> ErrorInfo | None:
    if not job.state.live or job.spec is None:
        return None
    if operation.model is not None and operation.model != job.spec.name:
        return ErrorInfo.of(
            ErrorCode.MODEL_MISMATCH,
            f"Job {job.job_id!r} runs the model {job.spec.name!r}, not {operation.model!r}.",
        )
    there = job.dataset_spec.name if job.dataset_spec else None
    if operation.dataset is not None and operation.dataset != there:
        return ErrorInfo.of(
            ErrorCode.DATASET_MISMATCH,
            f"Job {job.job_id!r} has {f'the dataset {there!r}' if there else 'no dataset'}, not "
            f"{operation.dataset!r}.",
        )
    return None


def _other_container(job: JobRecord, operation: OperationRecord, verb: Verb) -> ErrorInfo | None:
    """Return an error if the client named a container that is not the job's.

    Docker's short form is enough. If the job has no container, any well-formed id is accepted: it
    may have been the job's.
    """
    wanted = operation.wanted_container_id
    if wanted is None or VERB_RULES[verb].places:
        return None
    well_formed = CONTAINER_ID.fullmatch(wanted) is not None
    if well_formed and (not job.state.live or (job.container_id or "").startswith(wanted)):
        return None
    return ErrorInfo(
        code=ErrorCode.CONTAINER_MISMATCH,
        message=f"Container {wanted!r} is not the one of job {job.job_id!r}.",
        detail={"container_id": job.container_id},
    )


def _loaded_since(job: JobRecord, operation: OperationRecord) -> ErrorInfo | None:
    """Return an error if a load that was cut short is to be cleared up, and another one was not.

    That one had started just before the UNLOAD was put in line, and the UNLOAD waited for it.
    """
    if not SystemReason.LOAD_CUT_SHORT.gave(operation.reason) or job.state is JobState.CREATED:
        return None
    message = f"The model of job {job.job_id!r} was loaded meanwhile."
    return ErrorInfo.of(ErrorCode.INVALID_JOB_STATE, message)
