"""`/v1/inputs`: inputs that are too large for a request, or not JSON."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from gateway import openapi
from gateway.access.authentication import needs
from gateway.routes.dependencies import GatewayDependencies, answer, refuse_repeated
from gateway.routes.jobs import Submitter
from gateway.submission.uploads import input_view
from modelyard.contract.access.scopes import Principal, Scope
from modelyard.contract.answers import InputView
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.ids import InputId

router = APIRouter(prefix="/v1/inputs", tags=["inputs"])


@router.post(
    "",
    status_code=201,
    response_model=InputView,
    responses=openapi.UPLOAD_ANSWERS,
    openapi_extra=openapi.UPLOAD_BODY,
    dependencies=[Depends(refuse_repeated)],
    summary="Upload an input",
)
async def upload_input(
    request: Request, gateway: GatewayDependencies, caller: Submitter
) -> Response:
    """Store the body as it is, for requests that name it as `input_id`.

    An input that no request names within a day is removed. An input that was named is removed after
    the last operation that names it, but not within a day after a request named it.
    """
    view = await gateway.uploads.take(request, caller)
    return answer(view, 201, {"Location": f"/v1/inputs/{view.input_id}"})


@router.get(
    "/{input_id}",
    response_model=InputView,
    responses=openapi.ONE_ANSWERS,
    dependencies=[Depends(refuse_repeated)],
    summary="Read what an input is",
)
async def read_input(
    input_id: InputId,
    gateway: GatewayDependencies,
    caller: Annotated[Principal, needs(Scope.JOBS_READ, Scope.JOBS_SUBMIT, Scope.JOBS_INFER)],
) -> Response:
    """Return type, size and hash of an uploaded input."""
    found = await gateway.reading.ask(
        lambda: gateway.store.inputs.find(input_id, tenant=caller.tenant)
    )
    if found is None:
        raise ModelyardError(ErrorCode.NOT_FOUND, f"There is no input {input_id}.")
    return answer(input_view(found))
