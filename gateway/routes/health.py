"""`/livez` and `/readyz`: for supervisors and load balancers."""

from fastapi import APIRouter, Request, Response

from gateway import openapi
from gateway.availability import Condition
from gateway.problems import problem_of, respond
from gateway.routes.dependencies import GatewayDependencies, answer
from modelyard.contract.answers import Health
from modelyard.contract.errors import ErrorCode, ModelyardError

router = APIRouter(tags=["health"])


@router.get("/livez", response_model=Health, summary="Does the process run?")
async def livez() -> Response:
    """Answer 200 as long as the event loop runs, whatever RabbitMQ and MongoDB do."""
    return answer(Health(status="alive"))


@router.get(
    "/readyz",
    response_model=Health,
    responses=openapi.UNAVAILABLE,
    summary="Could a request be accepted now?",
)
async def readyz(request: Request, gateway: GatewayDependencies) -> Response:
    """Answer 200 if at least one of RabbitMQ and MongoDB is available, 503 otherwise."""
    conditions = await gateway.conditions()
    up = [condition for condition in conditions.values() if condition is Condition.UP]
    if up and not gateway.waiters.closing:
        status = "ready" if len(up) == len(conditions) else "degraded"
        return answer(Health(status=status, parts={k: v.value for k, v in conditions.items()}))
    reason = (
        "The gateway is stopping."
        if gateway.waiters.closing
        else "Neither RabbitMQ nor MongoDB answers."
    )
    problem = problem_of(ModelyardError(ErrorCode.UNAVAILABLE, reason))
    return respond(request, problem.model_copy(update={"parts": conditions}))
