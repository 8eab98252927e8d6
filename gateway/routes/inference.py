"""`/v1/models/{name}/infer`: send an inference to whichever job of a model is best placed."""

from contextlib import ExitStack
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from pydantic import TypeAdapter, ValidationError

from gateway import openapi
from gateway.access.authentication import needs
from gateway.inference.job_choice import unknown_model
from gateway.problems import FaultyRequestError
from gateway.routes.dependencies import GatewayDependencies, refuse_repeated
from gateway.routes.submitting import Awaited, accepted, answered, awaiting, submits
from gateway.service import Gateway
from gateway.submission import bodies
from gateway.submission.acceptor import JobLeavingError, KeyReusedError, PendingRequest
from gateway.submission.request_reader import InferenceOn
from modelyard.contract.access.scopes import Principal, scopes_to_submit
from modelyard.contract.answers import Accepted, Fault
from modelyard.contract.errors import ErrorCode, ModelyardError, StoreUnavailableError
from modelyard.contract.ids import Id, operation_id_for_key
from modelyard.contract.states import Verb
from modelyard.contract.validation import MAX_POINTER_CHARS
from modelyard.store.queries.serving_jobs import Copies

submitting = APIRouter(tags=["jobs"])
"""Called as often as those of `jobs.submitting`, and like these by `DirectRoutes`."""

_NAME: TypeAdapter[str] = TypeAdapter(Id)
_DATASET = "dataset"


async def _copies(request: Request) -> Copies:
    """Return which jobs are meant: those of the model in the path, and of the dataset if given."""
    try:
        model = _NAME.validate_python(request.path_params["name"])
    except ValidationError:  # not well-formed, so nothing can exist at this address
        raise ModelyardError(ErrorCode.NOT_FOUND) from None
    if not request.query_params:
        return Copies(model)
    await refuse_repeated(request)
    for name in request.query_params:
        if name != _DATASET:
            message = f"It is not known; the only parameter is `{_DATASET}`."
            raise FaultyRequestError([Fault(parameter=name[:MAX_POINTER_CHARS], message=message)])
    try:
        return Copies(model, _NAME.validate_python(request.query_params[_DATASET]))
    except ValidationError:
        message = "It is not the name of a dataset."
        raise FaultyRequestError([Fault(parameter=_DATASET, message=message)]) from None


Inferrer = Annotated[Principal, needs(*scopes_to_submit(Verb.INFER))]
WantedCopies = Annotated[Copies, Depends(_copies)]


@submitting.post(
    "/v1/models/{name}/infer",  # noqa: FAST003 - `_copies` takes it from the request
    status_code=202,
    responses=openapi.INFERENCE_ANSWERS,
    openapi_extra=openapi.INFERENCE_BODY,
    response_model=Accepted,
    summary="Submit an inference on any job of a model",
)
async def infer(
    request: Request, gateway: GatewayDependencies, caller: Inferrer, copies: WantedCopies
) -> Response:
    """Choose a job that has the model in memory, or loads it on demand, and submit an INFER on it.

    Of several the least loaded one is taken. The answer names it; all else is as with `/v1/jobs`.
    """
    submits(request, Verb.INFER)
    key = bodies.idempotency_key(request)
    wait_s = bodies.preferred_wait(request)
    with ExitStack() as waits:
        async with gateway.reader.inference(request, copies, key, tenant=caller.tenant) as on:

            async def submitted(*, movable: bool) -> tuple[Accepted, Awaited | None]:
                job_id = await _job_for(gateway, copies, key, tenant=caller.tenant)
                pending = replace(await on(job_id), movable=movable)
                pending = pending.accepted_now(gateway.store) if wait_s else pending
                awaited = awaiting(gateway, pending, waits) if wait_s else None
                return await _accepted(gateway, pending, on), awaited

            try:
                outcome, awaited = await submitted(movable=True)
            except JobLeavingError:
                outcome, awaited = await submitted(movable=False)
        return await answered(gateway, outcome, wait_s, request.receive, awaited)


async def _job_for(gateway: Gateway, copies: Copies, key: str | None, *, tenant: str) -> str:
    """Return the job for an inference.

    If there is none now, a request with this key may have found one before.
    """
    try:
        return await gateway.job_choice.job_for(copies)
    except StoreUnavailableError:
        raise
    except ModelyardError:
        if key is None:
            raise
        before = await gateway.reading.operation(operation_id_for_key(key, tenant=tenant))
        if before is None or before.job_id is None:
            raise
        return before.job_id


async def _accepted(gateway: Gateway, pending: PendingRequest, on: InferenceOn) -> Accepted:
    """Make an inference durable, or return the operation that its key has.

    A request with its key may have gone to another job, earlier or at the same time. On that job
    it is the same operation, or it is refused because its key is another request's.
    """
    try:
        return await accepted(gateway, pending)
    except KeyReusedError as reused:
        if reused.job_id is None or reused.job_id == pending.request.job_id:
            raise
        return await accepted(gateway, await on(reused.job_id))
    except ModelyardError as error:
        if error.code is ErrorCode.UNKNOWN_MODEL:
            # It was deleted; its jobs can still be used, each by its own name.
            refusal = unknown_model(pending.request.model or "")
            raise ModelyardError(refusal.code, refusal.message) from error
        raise
