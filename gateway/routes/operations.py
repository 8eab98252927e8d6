"""`/v1/operations`: read operations, wait for their end, read results, cancel and retry."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from gateway import openapi
from gateway.access.authentication import needs, refuse_to_submit
from gateway.explaining import explanation_of, operation_views
from gateway.monitoring.operator_log import log_change
from gateway.problems import RETRY_AFTER_S
from gateway.routes.dependencies import (
    GatewayDependencies,
    PageQuery,
    answer,
    deleted,
    page_answer,
    refuse_repeated,
)
from gateway.routes.jobs import Submitter
from gateway.routes.submitting import accepted, answered, submits
from gateway.service import Gateway
from gateway.submission import bodies
from gateway.submission.bodies import MOST_WAIT_S
from gateway.views import operation_view
from modelyard.contract.access.scopes import Principal, Scope
from modelyard.contract.answers import Accepted, OperationPage
from modelyard.contract.content.media_types import JSON_TYPE, file_ending, is_json
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.ids import Id, OperationId
from modelyard.contract.states import OperationState, Verb
from modelyard.contract.views import Explanation, OperationView
from modelyard.store.records import OperationRecord

router = APIRouter(prefix="/v1/operations", tags=["operations"])


class WaitQuery(BaseModel):
    """How long to wait for the operation to end."""

    model_config = ConfigDict(extra="forbid")

    wait: float = Field(
        default=0.0,
        ge=0.0,
        le=MOST_WAIT_S,
        allow_inf_nan=False,
        description="Seconds to wait for a terminal state; the gateway answers once it is reached.",
    )


class OperationQuery(PageQuery):
    """Filters of the list of operations."""

    state: OperationState | None = None
    job_id: Id | None = None
    model: Id | None = None
    operation_type: Verb | None = None
    host_id: Id | None = None

    def criteria(self) -> dict[str, str]:
        """Return the filters, keyed by field of the record."""
        filters = super().criteria()
        return {"verb" if name == "operation_type" else name: filters[name] for name in filters}

    def criteria_as_given(self) -> dict[str, str]:
        """Return the filters, keyed by query parameter."""
        return super().criteria()


@router.get(
    "",
    response_model=OperationPage,
    responses=openapi.FILTERED_LIST_ANSWERS,
    dependencies=[needs(Scope.JOBS_READ), Depends(refuse_repeated)],
    summary="List operations, newest first",
)
async def list_operations(
    gateway: GatewayDependencies, query: Annotated[OperationQuery, Query()]
) -> Response:
    """Return a page of operations."""
    after, filters = query.after(), query.criteria()
    page = await gateway.reading.ask_for_much(
        lambda: gateway.store.operation_queries.page(filters, after=after, limit=query.limit),
        filtered=bool(filters),
    )
    cursor = page.next.cursor() if page.next else None
    views = await operation_views(gateway.reading, gateway.store, page.items)
    content = OperationPage(operations=views, next=cursor)
    return page_answer(content, query, "/v1/operations", cursor)


@router.get(
    "/{operation_id}",
    response_model=OperationView,
    responses=openapi.ONE_ANSWERS,
    dependencies=[needs(Scope.JOBS_READ), Depends(refuse_repeated)],
    summary="Read an operation, or wait for its end",
)
async def read_operation(
    operation_id: OperationId,
    request: Request,
    gateway: GatewayDependencies,
    query: Annotated[WaitQuery, Query()],
) -> Response:
    """Return the operation: at once, or when it has ended or `wait` seconds have passed.

    If too many requests wait already, the answer comes at once, with `Retry-After`.
    """
    if query.wait > 0:
        record = await gateway.waiters.until_end(
            operation_id, query.wait, gateway.reading.operation, request.receive
        )
    else:
        record = await gateway.reading.operation(operation_id)
    found = _found(record, operation_id)
    [view] = await operation_views(gateway.reading, gateway.store, [found])
    retry = {} if view.state.terminal else {"Retry-After": str(RETRY_AFTER_S)}
    return answer(view, headers=retry)


@router.get(
    "/{operation_id}/result",
    response_class=Response,
    responses=openapi.RESULT_ANSWERS,
    dependencies=[needs(Scope.JOBS_READ)],
    summary="Read the result of an operation",
)
async def read_result(operation_id: OperationId, gateway: GatewayDependencies) -> Response:
    """Return the stored result, exactly as the model answered, with the type that it gave."""
    record = _found(await gateway.reading.operation(operation_id), operation_id)
    if not record.state.terminal:
        raise ModelyardError(ErrorCode.RESULT_NOT_READY, f"The operation is {record.state}.")
    content = await _content(gateway, record)
    return StreamingResponse(
        content,
        headers={
            **_result_headers(operation_id, record.result_type or JSON_TYPE),
            "Content-Length": str(record.result_bytes),
        },
    )


@router.get(
    "/{operation_id}/explain",
    response_model=Explanation,
    responses=openapi.ONE_ANSWERS,
    dependencies=[needs(Scope.JOBS_READ)],
    summary="Explain why an operation has not started",
)
async def explain_operation(operation_id: OperationId, gateway: GatewayDependencies) -> Response:
    """Return what an operation waits for: in its job's line, for a host, for memory of a device."""
    found = await gateway.reading.ask_for_much(lambda: explanation_of(gateway.store, operation_id))
    if found is None:
        raise ModelyardError(ErrorCode.NOT_FOUND, f"There is no operation {operation_id}.")
    return answer(found)


@router.post(
    "/{operation_id}/cancel",
    status_code=202,
    response_model=OperationView,
    responses=openapi.CANCEL_ANSWERS,
    dependencies=[Depends(refuse_repeated)],
    summary="Cancel an operation",
)
async def cancel_operation(
    operation_id: OperationId,
    request: Request,
    gateway: GatewayDependencies,
    caller: Annotated[Principal, needs(Scope.JOBS_SUBMIT)],
    query: Annotated[WaitQuery, Query()],
) -> Response:
    """Request the cancellation of an operation: 202 while it is open, 200 once it is CANCELLED.

    A running operation takes a moment to stop. An operation that has ended does not change.
    """
    record = await gateway.cancels.request(operation_id)
    if record is not None and not record.state.terminal:
        log_change(caller, "operation.cancel", operation_id=operation_id, job_id=record.job_id)
    if record is not None and not record.state.terminal and query.wait > 0:
        record = await gateway.waiters.until_end(
            operation_id, query.wait, gateway.reading.operation, request.receive
        )
    view = operation_view(_found(record, operation_id))
    if not view.state.terminal:
        return answer(view, 202, {"Retry-After": str(RETRY_AFTER_S)})
    if view.state is not OperationState.CANCELLED:
        raise ModelyardError(ErrorCode.ALREADY_ENDED, f"The operation ended {view.state}.")
    return answer(view)


@router.post(
    "/{operation_id}/retry",
    status_code=202,
    response_model=Accepted,
    responses=openapi.RETRY_ANSWERS,
    openapi_extra=openapi.SUBMIT_HEADERS,
    summary="Submit the request of an operation again",
)
async def retry_operation(
    operation_id: OperationId, request: Request, gateway: GatewayDependencies, caller: Submitter
) -> Response:
    """Submit the request of an operation that ended without success, as a new operation.

    Without an `Idempotency-Key` each call creates another operation.
    """
    submits(request)
    bodies.refuse_dry_run(request)
    key = bodies.idempotency_key(request)
    wait_s = bodies.preferred_wait(request)
    record = await gateway.reading.ask(
        lambda: gateway.store.operation_queries.with_input(operation_id)
    )
    found = _found(record if record and not record.deleted else None, operation_id)
    submits(request, found.verb)
    if found.verb is not None and (refusal := refuse_to_submit(caller, found.verb)):
        raise refusal
    again = await gateway.reader.again(found, key, tenant=caller.tenant)
    outcome = await accepted(gateway, again)
    return await answered(gateway, outcome, wait_s, request.receive)


@router.delete(
    "/{operation_id}",
    status_code=204,
    responses=openapi.DELETE_ANSWERS,
    summary="Delete an operation that has ended",
)
async def delete_operation(
    operation_id: OperationId,
    gateway: GatewayDependencies,
    caller: Annotated[Principal, needs(Scope.JOBS_SUBMIT)],
) -> Response:
    """Delete an operation with its result, its events and its input; its job stays.

    An uploaded input is removed at the earliest a day after a request named it. The operation's
    idempotency key can't be used again as long as operations are kept.
    """
    done = await gateway.reading.ask(lambda: gateway.store.deletions.operation(operation_id))
    deleted(done, f"operation {operation_id}")
    log_change(caller, "operation.delete", operation_id=operation_id)
    return Response(status_code=204)


def _result_headers(operation_id: str, media_type: str) -> dict[str, str]:
    """Return the headers of a result, with which a browser does not run it.

    Models are not trusted, and what they answer comes from the gateway's own address. That a
    browser does not guess what it is, every answer says.
    """
    headers = {
        "Content-Type": media_type,
        "Content-Security-Policy": "sandbox; default-src 'none'",
    }
    if not is_json(media_type):
        name = f"{operation_id}.{file_ending(media_type)}"
        headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return headers


def _found(record: OperationRecord | None, operation_id: str) -> OperationRecord:
    if record is None:
        raise ModelyardError(ErrorCode.NOT_FOUND, f"There is no operation {operation_id}.")
    return record


async def _content(gateway: Gateway, record: OperationRecord) -> AsyncIterator[bytes]:
    """Return the result's bytes. The first chunk is read before, so that errors come in time."""
    chunks = await gateway.reading.ask(lambda: gateway.store.results.get(record.operation_id))
    if chunks is None or record.result_bytes is None:
        gone = "Its result is no longer kept." if record.result_gone else ""
        raise ModelyardError(ErrorCode.NO_RESULT, gone or f"The operation ended {record.state}.")
    first = await gateway.reading.ask(lambda: anext(chunks))

    async def all_chunks() -> AsyncIterator[bytes]:
        yield first
        async for chunk in chunks:
            yield chunk

    return all_chunks()
