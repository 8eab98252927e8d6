"""`/inference_router/` and `/v1/jobs`: submit one request or a batch; list and read jobs."""

from contextlib import ExitStack
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from gateway import openapi
from gateway.access.authentication import needs, refuse_to_submit
from gateway.monitoring.operator_log import log_change
from gateway.routes.dependencies import (
    GatewayDependencies,
    PageQuery,
    answer,
    deleted,
    page_answer,
    refuse_repeated,
)
from gateway.routes.submitting import accepted, answered, awaiting, dry_run, submits
from gateway.submission import bodies
from gateway.submission.batches import accept_batch
from gateway.views import job_view
from modelyard.contract.access.scopes import Principal, Scope
from modelyard.contract.answers import Accepted, BatchAnswer, JobPage
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.ids import Id
from modelyard.contract.states import JobState
from modelyard.contract.views import JobView

submitting = APIRouter(tags=["jobs"])
"""The routes that nearly all requests use; `DirectRoutes` calls them."""
router = APIRouter(tags=["jobs"])

Submitter = Annotated[Principal, needs(Scope.JOBS_SUBMIT, Scope.JOBS_INFER)]


class JobQuery(PageQuery):
    """Filters of the list of jobs."""

    state: JobState | None = None
    model: Id | None = None
    host_id: Id | None = None


@submitting.post("/inference_router", include_in_schema=False)
@submitting.post(
    "/inference_router/",
    status_code=202,
    responses=openapi.SUBMIT_ANSWERS,
    openapi_extra=openapi.SUBMIT_BODY,
    response_model=Accepted,
    summary="Submit a request on a job, at the path of the original system",
)
@submitting.post(
    "/v1/jobs",
    status_code=202,
    responses=openapi.SUBMIT_ANSWERS,
    openapi_extra=openapi.SUBMIT_BODY,
    response_model=Accepted,
    summary="Submit a request on a job",
)
async def submit(request: Request, gateway: GatewayDependencies, caller: Submitter) -> Response:
    """Accept one request and answer with its operation, as soon as it is durable.

    With `dry_run=true` nothing is accepted: the answer says what would become of the request now.
    """
    key = bodies.idempotency_key(request)
    if bodies.is_dry_run(request):
        return answer(await dry_run(request, gateway, caller, key))
    submits(request)
    wait_s = bodies.preferred_wait(request)
    with ExitStack() as waits:
        async with gateway.reader.one(request, key, tenant=caller.tenant) as asked:
            submits(request, asked.request.operation_type)
            if refusal := refuse_to_submit(caller, asked.request.operation_type):
                raise refusal
            pending = asked.accepted_now(gateway.store) if wait_s else asked
            awaited = awaiting(gateway, pending, waits) if wait_s else None
            outcome = await accepted(gateway, pending)
        return await answered(gateway, outcome, wait_s, request.receive, awaited)


@router.post(
    "/v1/jobs/batch",
    responses=openapi.BATCH_ANSWERS,
    openapi_extra=openapi.BATCH_BODY,
    response_model=BatchAnswer,
    summary="Submit up to 1,000 requests",
)
async def submit_batch(
    request: Request, gateway: GatewayDependencies, caller: Submitter
) -> Response:
    """Accept or refuse each request on its own; a refused one does not affect the others."""
    submits(request)
    bodies.refuse_dry_run(request)
    key = bodies.idempotency_key(request)
    async with gateway.reader.batch(request, key, tenant=caller.tenant) as read:
        return answer(await accept_batch(gateway.acceptor, read, caller, gateway.metrics))


@router.get(
    "/v1/jobs",
    response_model=JobPage,
    responses=openapi.FILTERED_LIST_ANSWERS,
    dependencies=[needs(Scope.JOBS_READ), Depends(refuse_repeated)],
    summary="List jobs, newest first",
)
async def list_jobs(gateway: GatewayDependencies, query: Annotated[JobQuery, Query()]) -> Response:
    """Return a page of jobs."""
    after, filters = query.after(), query.criteria()
    page = await gateway.reading.ask_for_much(
        lambda: gateway.store.jobs.page(filters, after=after, limit=query.limit),
        filtered=bool(filters),
    )
    cursor = page.next.cursor() if page.next else None
    content = JobPage(jobs=tuple(job_view(record) for record in page.items), next=cursor)
    return page_answer(content, query, "/v1/jobs", cursor)


@router.get(
    "/v1/jobs/{job_id}",
    response_model=JobView,
    responses=openapi.ONE_ANSWERS,
    dependencies=[needs(Scope.JOBS_READ)],
    summary="Read a job",
)
async def read_job(job_id: Id, gateway: GatewayDependencies) -> Response:
    """Return the state of a job."""
    record = await gateway.reading.ask(lambda: gateway.store.jobs.get(job_id))
    if record is None:
        raise ModelyardError(ErrorCode.NOT_FOUND, f"There is no job {job_id}.")
    return answer(job_view(record))


@router.delete(
    "/v1/jobs/{job_id}",
    status_code=204,
    responses=openapi.DELETE_ANSWERS,
    summary="Delete a job that has no container",
)
async def delete_job(
    job_id: Id,
    gateway: GatewayDependencies,
    caller: Annotated[Principal, needs(Scope.JOBS_SUBMIT)],
) -> Response:
    """Delete a job that is TERMINATED, FAILED or LOST; its operations stay until they are deleted.

    A later request may use its name for a new job.
    """
    done = await gateway.reading.ask(lambda: gateway.store.deletions.job(job_id))
    deleted(done, f"job {job_id}")
    log_change(caller, "job.delete", job_id=job_id)
    return Response(status_code=204)
