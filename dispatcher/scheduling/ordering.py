"""A job's line: which of its operations may go now. Pure: the rules of order and of each verb."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from modelyard.contract.catalog.entries import DatasetSpec, ModelSpec, Profile
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.states import VERB_RULES, OperationState, Verb, VerbRule
from modelyard.store.records import JobLine, JobRecord, OperationRecord

CONTAINER_ID = re.compile(r"[0-9a-f]{12,64}")
"""A container's id, or its beginning: Docker shows 12 characters of it."""


@dataclass(frozen=True, slots=True)
class CatalogEntries:
    """The entries that the operations at hand name."""

    models: Mapping[str, ModelSpec]
    datasets: Mapping[str, DatasetSpec]


@dataclass(frozen=True, slots=True)
class Reject:
    """It could never run."""

    operation: OperationRecord
    error: ErrorInfo


@dataclass(frozen=True, slots=True)
class SucceedAsIs:
    """The verb already holds and there is no container to ask: it succeeds as it is."""

    operation: OperationRecord


@dataclass(frozen=True, slots=True)
class Dispatch:
    """To the job's own host."""

    operation: OperationRecord
    job: JobRecord
    host_id: str


class EndedBy(Enum):
    """What a TERMINATE makes of an operation before it that has no host yet."""

    NEXT = "next"
    """Nothing would use the container: without a host there is no need to make it."""
    LATER = "later"
    """There is work in between, which may wait for room; not for a host that is not there."""


@dataclass(frozen=True, slots=True)
class PlaceAndDispatch:
    """To a host that is still to be found, as a new generation."""

    operation: OperationRecord
    job: JobRecord
    spec: ModelSpec
    dataset: DatasetSpec | None
    ended_by: EndedBy | None = None
    """Set if a TERMINATE waits behind it."""


Decision = Reject | SucceedAsIs | Dispatch | PlaceAndDispatch


def next_decisions(line: JobLine, catalog: CatalogEntries) -> list[Decision]:
    """Return what may happen now in a job's line, in its order.

    An operation may go when all before it have ended. Inferences may go together, up to the
    model's `max_concurrency`; whatever comes behind them waits for all of them.
    """
    decisions: list[Decision] = []
    inferring = 0
    for operation in _heads(line):
        shared = operation.shared
        if operation.state is not OperationState.QUEUED or operation.resting:
            if not shared:
                break
            inferring += 1  # one that rests keeps its place in the order, too
            continue
        if inferring and not shared:
            break
        if shared and inferring >= _concurrency(line.job):
            break
        decision = _decide(line.job, operation, catalog)
        if isinstance(decision, PlaceAndDispatch):
            decision = replace(decision, ended_by=_ended_by(line, operation))
        decisions.append(decision)
        if isinstance(decision, Reject):
            continue  # it changes nothing, so the next one may be looked at
        if not shared:
            break
        inferring += 1
    return decisions


def _heads(line: JobLine) -> tuple[OperationRecord, ...]:
    """Return the line, or nothing while what brings the job back is about to stand in front."""
    return () if line.job.recovery is not None else line.operations


def _ended_by(line: JobLine, first: OperationRecord) -> EndedBy | None:
    behind = [one.verb for one in line.operations[line.operations.index(first) + 1 :]]
    if Verb.TERMINATE not in behind:
        return None
    return EndedBy.NEXT if behind[0] is Verb.TERMINATE else EndedBy.LATER


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
    )
    if error is not None:
        return Reject(operation, error)
    if job.host_id is not None and (not rule.places or _is_placed(job, operation, rule)):
        return Dispatch(operation, job, job.host_id)
    if rule.places:
        return _place(job, operation, verb, catalog)
    if job.state in rule.holds_in:
        return SucceedAsIs(operation)
    return Reject(operation, ErrorInfo.of(ErrorCode.CONTAINER_MISSING))


def _is_placed(job: JobRecord, operation: OperationRecord, rule: VerbRule) -> bool:
    """Tell if a verb that places has its place: it holds already, or it is given once more."""
    if job.state in rule.holds_in:
        return True
    return job.current is not None and job.current.operation_id == operation.operation_id


def _place(
    job: JobRecord, operation: OperationRecord, verb: Verb, catalog: CatalogEntries
) -> PlaceAndDispatch | Reject:
    if operation.source == "system" and job.spec is not None:
        return PlaceAndDispatch(
            operation, job, job.spec, job.dataset_spec
        )  # as it was, to bring it back
    spec = catalog.models.get(operation.model or "")
    if spec is None:
        message = f"The catalog has no model {operation.model!r}."
        return Reject(operation, ErrorInfo.of(ErrorCode.UNKNOWN_MODEL, message))
    dataset = catalog.datasets.get(operation.dataset or "")
    if operation.dataset is not None and dataset is None:
        message = f"The catalog has no dataset {operation.dataset!r}."
        return Reject(operation, ErrorInfo.of(ErrorCode.UNKNOWN_DATASET, message))
    error = _misfit(operation, verb, spec, dataset)
    return Reject(operation, error) if error else PlaceAndDispatch(operation, job, spec, dataset)


def _misfit(
    operation: OperationRecord, verb: Verb, spec: ModelSpec, dataset: DatasetSpec | None
) -> ErrorInfo | None:
    if spec.profile is Profile.BATCH:
        if verb is not Verb.TEMP:
            message = f"Model {spec.name!r} has the profile batch, which knows only TEMP."
            return ErrorInfo.of(ErrorCode.UNSUPPORTED_VERB, message)
        if operation.has_input:
            message = f"Model {spec.name!r} has the profile batch, which reads only its dataset."
            return ErrorInfo.of(ErrorCode.UNEXPECTED_INPUT, message)
        return None
    if verb is Verb.TEMP and not operation.has_input and dataset is None:
        return ErrorInfo.of(ErrorCode.MISSING_INPUT, "TEMP needs an input or a dataset.")
    return None


def _state_error(job: JobRecord, verb: Verb) -> ErrorInfo | None:
    rule = VERB_RULES[verb]
    if job.state in rule.starts_from | rule.holds_in:
        return None
    wanted = " or ".join(sorted(rule.starts_from))
    return ErrorInfo(
        code=ErrorCode.INVALID_JOB_STATE,
        message=f"{verb} starts from {wanted}; job {job.job_id!r} is {job.state}.",
        detail={"job_state": job.state, "starts_from": sorted(rule.starts_from)},
    )


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
            f"Job {job.job_id!r} has the dataset {there!r}, not {operation.dataset!r}.",
        )
    return None


def _other_container(job: JobRecord, operation: OperationRecord, verb: Verb) -> ErrorInfo | None:
    """Return what is wrong with the container that a client named, if it named one.

    Docker's short form will do. Of a job without a container any id that could be one is taken:
    it may have been the job's.
    """
    given = operation.wanted_container_id
    if given is None or VERB_RULES[verb].places:
        return None
    possible = CONTAINER_ID.fullmatch(given) is not None
    if possible and (not job.state.live or (job.container_id or "").startswith(given)):
        return None
    return ErrorInfo(
        code=ErrorCode.CONTAINER_MISMATCH,
        message=f"Container {given!r} is not the one of job {job.job_id!r}.",
        detail={"container_id": job.container_id},
    )
