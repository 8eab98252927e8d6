"""The guarded writes to one operation, as MongoDB's update pipelines."""

from dataclasses import dataclass

from pymongo import UpdateOne

from modelyard.contract.errors import ErrorInfo
from modelyard.contract.messages import OperationReport
from modelyard.contract.states import OperationState, operation_sources
from modelyard.store.records import Document, LastReport, NewOperation, error_document

ACTIVE_ON_HOST_STATES = frozenset({OperationState.DISPATCHED, OperationState.RUNNING})
"""The states in which a host works on the operation: the only ones that a report may change."""


@dataclass(frozen=True, slots=True)
class ResultPlace:
    """Where a reported result is stored."""

    inline_json: str | None
    file_id: str | None
    size: int


def sources(target: OperationState) -> list[str]:
    return sorted(operation_sources(target))


def older(field: str, seconds: float) -> Document:
    """Compare a date with the database's own clock."""
    return {"$lt": [field, {"$subtract": ["$$NOW", int(seconds * 1_000)]}]}


def literal(value: ErrorInfo | None) -> Document | None:
    return None if value is None else {"$literal": error_document(value)}


def recording(operation: NewOperation, line: int | None, place: int) -> list[Document]:
    """Return a pipeline that records a new operation, and sets its `line` if it has none.

    `place` is its position among the operations of the same write, which all share one `$$NOW`.
    Every value that a client chose is a literal, so that none of its keys or strings is evaluated
    as an expression.
    """
    rejection = operation.rejection
    document = operation.model_dump(mode="json", exclude={"operation_id", "rejection", "rest_s"})
    document |= {
        "_id": operation.operation_id,
        "state": OperationState.REJECTED if rejection else OperationState.QUEUED,
        "open": rejection is None,
        "accepted_place": place,
        "has_input": operation.input_json is not None,
        "epoch": 0,
        "seq": 0,
        "error": error_document(rejection),
    }
    set_by_database: Document = {"accepted_at": "$$NOW"}
    if rejection is not None:
        set_by_database["finished_at"] = "$$NOW"
    if operation.rest_s:
        set_by_database["not_before"] = {"$add": ["$$NOW", int(operation.rest_s * 1_000)]}
    if operation.queue_timeout_s is not None:
        set_by_database["expires_at"] = {"$add": ["$$NOW", int(operation.queue_timeout_s * 1_000)]}
    pipeline: list[Document] = [
        {
            "$replaceWith": {
                "$cond": [
                    {"$eq": [{"$type": "$state"}, "missing"]},
                    {"$mergeObjects": [{"$literal": document}, set_by_database]},
                    "$$ROOT",
                ],
            },
        },
    ]
    if line is not None:
        pipeline.append({"$set": {"line": {"$ifNull": ["$line", line]}}})
    return pipeline


def report_write(
    report: OperationReport, result: ResultPlace | None, told: LastReport | None = None
) -> UpdateOne:
    """Return the write of a report; with `told` the operation keeps which message it came in."""
    state = report.state
    changes: Document = {
        "state": state,
        "seq": report.seq,
        "phase": report.phase,
        "progress": {"$literal": report.progress.model_dump(mode="json")}
        if report.progress
        else None,
        "error": literal(report.error),
        "started_at": {"$ifNull": ["$started_at", "$$NOW"]},
        # A worker has begun it, so its queue deadline does not apply any more.
        "expires_at": "$$REMOVE",
    }
    if report.container_id is not None:
        changes["container_id"] = {"$literal": report.container_id}
    if state.terminal:
        changes |= {"open": False, "finished_at": "$$NOW"}
    if result is not None:
        changes |= {
            "result_json": {"$literal": result.inline_json},
            "result_file": result.file_id,
            "result_bytes": result.size,
        }
    if told is not None:
        changes["told"] = {"$literal": told.model_dump()}
    return UpdateOne(
        {
            "_id": report.operation_id,
            "epoch": report.epoch,
            "seq": {"$lt": report.seq},
            "state": {"$in": sorted(operation_sources(state) & ACTIVE_ON_HOST_STATES)},
        },
        [{"$set": changes}],
    )
