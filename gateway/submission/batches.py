"""Batches: each request is accepted or refused on its own, but all of them in one write."""

from collections.abc import Sequence

from gateway.access.authentication import refuse_to_submit
from gateway.monitoring.metrics import GatewayMetrics
from gateway.problems import bytes_of, problem_of
from gateway.submission.acceptor import Acceptor, PendingRequest
from gateway.submission.requests import RefusedRequest
from modelyard.contract.access.scopes import Principal
from modelyard.contract.answers import Accepted, BatchAnswer, BatchItem, Problem
from modelyard.contract.errors import ModelyardError

MAX_LISTED_BYTES = 256 << 10
"""Most bytes of `errors` in one answer, over all problems; any further problem lists none."""
MAX_BRIEF_CHARS = 200
"""Most characters in the detail of a problem that lists no errors."""


async def accept_batch(
    acceptor: Acceptor,
    wanted: Sequence[PendingRequest | RefusedRequest],
    caller: Principal,
    metrics: GatewayMetrics,
) -> BatchAnswer:
    """Accept or refuse each request; the answers are in the order of the requests."""
    read = [_allowed(one, caller) for one in wanted]
    outcomes = iter(await acceptor.accept([one for one in read if isinstance(one, PendingRequest)]))
    items: list[BatchItem] = []
    room = MAX_LISTED_BYTES
    for one in read:
        outcome, job_id = (
            (one.error, one.job_id)
            if isinstance(one, RefusedRequest)
            else (next(outcomes), one.request.job_id)
        )
        if isinstance(outcome, Accepted):
            items.append(_accepted(outcome))
            continue
        verb = None if isinstance(one, RefusedRequest) else one.request.operation_type
        metrics.rejected(verb, outcome.code)
        problem = _problem(outcome, room)
        room -= bytes_of(problem.errors)
        items.append(BatchItem(status=problem.status, job_id=job_id, problem=problem))
    return BatchAnswer(results=tuple(items))


def _allowed(
    one: PendingRequest | RefusedRequest, caller: Principal
) -> PendingRequest | RefusedRequest:
    if isinstance(one, PendingRequest) and (
        refusal := refuse_to_submit(caller, one.request.operation_type)
    ):
        return RefusedRequest(refusal, one.request.job_id)
    return one


def _accepted(outcome: Accepted) -> BatchItem:
    return BatchItem(
        status=202,
        operation_id=outcome.operation_id,
        job_id=outcome.job_id,
        state=outcome.state,
        links=outcome.links,
    )


def _problem(error: ModelyardError, room: int) -> Problem:
    problem = problem_of(error)
    if bytes_of(problem.errors) <= room:
        return problem
    return problem.model_copy(update={"errors": (), "detail": problem.detail[:MAX_BRIEF_CHARS]})
