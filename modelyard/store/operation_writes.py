"""The guarded writes to one operation, as MongoDB's update pipelines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property

from pymongo import UpdateOne

from modelyard.contract.errors import ErrorInfo
from modelyard.contract.messages import OperationReport
from modelyard.contract.states import REPORTED_STATES, OperationState, operation_sources
from modelyard.store.records import (
    Document,
    LastReport,
    Moment,
    NewOperation,
    OperationRecord,
    error_document,
    points_ms,
    rank_of,
)

ACTIVE_ON_HOST_STATES = frozenset({OperationState.DISPATCHED, OperationState.RUNNING})
"""The states in which a host works on the operation: the only ones that a report may change."""


def now_for_people() -> datetime:
    """Return the time by this process's clock, as exactly as MongoDB stores it."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1_000 * 1_000)


@dataclass(frozen=True)
class DispatchClaim:
    """The scheduler's request to dispatch one operation whose epoch is still as it was read."""

    operation: OperationRecord
    host_id: str
    incarnation: str
    generation: int
    at: datetime = field(default_factory=now_for_people)

    @cached_property
    def dispatched(self) -> OperationRecord:
        """The operation as it is after this claim."""
        return self.operation.model_copy(
            update={
                "state": OperationState.DISPATCHED,
                "epoch": self.operation.epoch + 1,
                "seq": 0,
                "host_id": self.host_id,
                "incarnation": self.incarnation,
                "generation": self.generation,
                "waiting_for": (),
                "not_before": None,
                "resting": False,
                "error": None,
                "dispatched_at": self.at,
                "started_at": None,
            }
        )


@dataclass(frozen=True, slots=True)
class IntakeEntry:
    """An operation that gets its place in line, and that starts at once if there is a `claim`."""

    new: NewOperation
    line: int
    claim: DispatchClaim | None = None


@dataclass(frozen=True, slots=True)
class ResultPlace:
    """Where a reported result is stored, and what it is."""

    content_type: str
    size: int
    sha256: str | None
    """None of a result that an older version stored."""
    inline_json: str | None = None
    inline_content: bytes | None = None
    file_id: str | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """What is recorded with a report.

    When its attempt began and ended is for people: by the dispatcher's clock.
    """

    started_at: datetime
    finished_at: datetime
    """Of no meaning while it runs."""
    told: LastReport | None = None
    """The message that it came in, if the operation keeps that: if it belongs to a relocation."""


def sources(target: OperationState) -> list[str]:
    return sorted(operation_sources(target))


def report_sources(target: OperationState) -> frozenset[OperationState]:
    """Return the states from which a worker's report may lead to `target`; none if no report may.

    A worker may only report what it can know: the return to the queue is the dispatcher's.
    """
    if target not in REPORTED_STATES:
        return frozenset()
    return operation_sources(target) & ACTIVE_ON_HOST_STATES


def older(date: str | Document, seconds: float) -> Document:
    """Compare a date, by a field's path or an expression, with the database's own clock."""
    return {"$lt": [date, {"$subtract": ["$$NOW", int(seconds * 1_000)]}]}


def literal(value: ErrorInfo | None) -> Document | None:
    return None if value is None else {"$literal": error_document(value)}


def recording(operation: NewOperation, line: int | None, number: int) -> list[Document]:
    """Return a pipeline that records a new operation, and sets its `line` if it has none.

    If no gateway has said when it accepted it, that is now; `number` is the second part of a
    `Moment` then. Every value that a client chose is a literal, so that none of its keys or strings
    is evaluated as an expression.
    """
    if operation.accepted is not None:
        document: Document = {"$literal": accepted_document(operation, operation.accepted)}
    else:

        def after(seconds: float) -> object:
            return {"$add": ["$$NOW", int(seconds * 1_000)]}

        fields = {"$literal": _recorded(operation, number)}
        now_ms = {"$toLong": "$$NOW"}
        rank = {"rank": {"$subtract": [now_ms, points_ms(operation.priority)]}}
        document = {"$mergeObjects": [fields, rank | _times(operation, after)]}
    is_new = {"$eq": [{"$type": "$accepted_at"}, "missing"]}
    pipeline: list[Document] = [{"$replaceWith": {"$cond": [is_new, document, "$$ROOT"]}}]
    if line is not None:
        pipeline.append({"$set": {"line": {"$ifNull": ["$line", line]}}})
    return pipeline


def accepted_document(operation: NewOperation, accepted: Moment) -> Document:
    """Return the document of a new operation that was accepted at this moment.

    To insert it costs MongoDB a quarter of what `recording` does.
    """
    at, number = accepted

    def after(seconds: float) -> object:
        return at + timedelta(milliseconds=int(seconds * 1_000))

    rank = rank_of(operation.priority, at)
    return _recorded(operation, number) | {"rank": rank} | _times(operation, after)


def _recorded(operation: NewOperation, number: int) -> Document:
    """Return a new operation's document, but for its times."""
    rejection = operation.rejection
    document = operation.model_dump(mode="json", exclude=_NOT_AS_IT_IS)
    return document | {
        "_id": operation.operation_id,
        "state": OperationState.REJECTED if rejection else OperationState.QUEUED,
        "open": rejection is None,
        "accepted_place": number,
        "has_input": operation.input_json is not None,
        "epoch": 0,
        "seq": 0,
        "error": error_document(rejection),
    }


_NOT_AS_IT_IS = {"operation_id", "rejection", "rest_s", "accepted"}


def _times(operation: NewOperation, after: Callable[[float], object]) -> Document:
    """Return a new operation's times; `after` says when some seconds after now are over."""
    times: Document = {"accepted_at": after(0.0)}
    if operation.rejection is not None:
        times["finished_at"] = after(0.0)
    if operation.rest_s:
        times["not_before"] = after(operation.rest_s)
    if operation.queue_timeout_s is not None:
        times["expires_at"] = after(operation.queue_timeout_s)
    return times


def _not_before_dispatch(at: datetime) -> Document:
    """Return a time by the dispatcher's clock, or that of the dispatch if it is later."""
    return {"$max": ["$dispatched_at", at]}


def _began_at(ran_s: float) -> Document:
    """Return when an attempt began that has lasted `ran_s` seconds: after it was dispatched."""
    return {"$max": ["$claimed_at", {"$subtract": ["$$NOW", int(ran_s * 1_000)]}]}


def entry_write(entry: IntakeEntry, number: int) -> UpdateOne:
    """Return the write that records an operation and puts it in line; with a claim it starts.

    `number` is as for `recording`. It changes nothing if the operation is recorded and may not
    enter as it is.
    """
    new, claim = entry.new, entry.claim
    may_enter: list[Document] = [
        {"$eq": [{"$ifNull": ["$line", None]}, None]},
        {"$eq": ["$payload_hash", new.payload_hash]},
        {"$eq": ["$epoch", 0]},
        {"$ne": ["$cancel_requested", True]},
        {"$eq": [{"$type": "$not_before"}, "missing"]},
        {"$eq": ["$state", OperationState.REJECTED if new.rejection else OperationState.QUEUED]},
    ]
    changes: Document = {"line": entry.line}
    if new.reply is not None:  # who recorded it may not have had an address
        changes["reply"] = {"$literal": new.reply.model_dump(mode="json")}
    if claim is not None:
        changes |= _dispatched(claim)
    return UpdateOne(
        {"_id": new.operation_id},
        [*recording(new, None, number), _changed_if(may_enter, changes)],
        upsert=True,
    )


def claim_write(claim: DispatchClaim, token: str) -> UpdateOne:
    """Return the write that dispatches a QUEUED operation under a new epoch."""
    return UpdateOne(
        {
            "_id": claim.operation.operation_id,
            # An id that came again with another request has another position in memory.
            "line": claim.operation.line,
            "state": {"$in": sources(OperationState.DISPATCHED)},
            "epoch": claim.operation.epoch,
        },
        [{"$set": _dispatched(claim) | {"token": token}}],
    )


def _dispatched(claim: DispatchClaim) -> Document:
    return {
        "state": OperationState.DISPATCHED,
        "epoch": claim.operation.epoch + 1,
        "seq": 0,
        "host_id": {"$literal": claim.host_id},
        "incarnation": {"$literal": claim.incarnation},
        "generation": claim.generation,
        "waiting_for": [],
        "waits": "$$REMOVE",
        "not_before": "$$REMOVE",
        "error": None,
        # Each attempt may run for the whole timeout.
        "started_at": "$$REMOVE",
        "begun_at": "$$REMOVE",
        # For people, by the dispatcher's clock; decisions go by the database's.
        "dispatched_at": {"$max": [claim.at, "$accepted_at"]},
        "claimed_at": "$$NOW",
        "published_at": "$$NOW",
    }


def report_write(
    report: OperationReport, result: ResultPlace | None, receipt: Receipt | None = None
) -> UpdateOne:
    """Return the write of a report, which changes nothing if the report is stale.

    Without `receipt` the database's clock says when it ended.
    """
    state = report.state
    began_at = _began_at(report.ran_s or 0.0)
    changes: Document = {
        "state": state,
        "seq": report.seq,
        "phase": report.phase,
        "progress": {"$literal": report.progress.model_dump(mode="json")}
        if report.progress
        else None,
        "error": literal(report.error),
        "started_at": {
            "$ifNull": [
                "$started_at",
                _not_before_dispatch(receipt.started_at) if receipt else began_at,
            ]
        },
        "begun_at": {"$ifNull": ["$begun_at", began_at]},
    }
    if report.container_id is not None:
        changes["container_id"] = {"$literal": report.container_id}
    if state.terminal:
        changes |= {"open": False, "finished_at": "$$NOW"}
        if receipt is not None:
            changes["finished_at"] = _not_before_dispatch(receipt.finished_at)
    if result is not None:
        changes |= {
            "result_json": {"$literal": result.inline_json},
            "result_file": result.file_id,
            "result_bytes": result.size,
            "result_type": {"$literal": result.content_type},
            "result_sha256": result.sha256,
        }
        if result.inline_content is not None:
            changes["result_content"] = {"$literal": result.inline_content}
    if receipt is not None and receipt.told is not None:
        changes["told"] = {"$literal": receipt.told.model_dump()}
    current: list[Document] = [
        {"$eq": ["$epoch", report.epoch]},
        {"$lt": ["$seq", report.seq]},
        {"$in": ["$state", sorted(report_sources(state))]},
    ]
    # A worker has begun it, so its queue deadline does not apply any more.
    stage = _changed_if(current, changes, without="expires_at")
    return UpdateOne({"_id": report.operation_id}, [stage])


def _changed_if(
    conditions: Sequence[Document], changes: Document, *, without: str | None = None
) -> Document:
    """Return a stage that sets fields, and removes one, if all conditions hold.

    It stands for a filter: MongoDB finds a document by its key alone in half of the time. A
    change to `$$REMOVE` has no effect here.
    """
    after: Document = {"$mergeObjects": ["$$ROOT", changes]}
    if without is not None:
        after = {"$unsetField": {"field": without, "input": after}}
    return {"$replaceWith": {"$cond": [{"$and": conditions}, after, "$$ROOT"]}}
