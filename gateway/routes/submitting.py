"""Accepting and answering a single request: a new one, a retry, or one that is not made."""

from contextlib import ExitStack
from dataclasses import dataclass

from fastapi import Request, Response
from starlette.types import Receive

from gateway.access.authentication import refuse_to_submit
from gateway.explaining import explanation_of_request
from gateway.monitoring.request_facts import VERB
from gateway.problems import RETRY_AFTER_S
from gateway.routes.dependencies import answer
from gateway.service import Gateway
from gateway.submission.acceptor import PendingRequest
from gateway.views import operation_path, operation_view
from gateway.waiters import WaitingRequest
from modelyard.contract.access.scopes import Principal, Scope
from modelyard.contract.answers import Accepted
from modelyard.contract.errors import ModelyardError, StoreUnavailableError
from modelyard.contract.states import Verb
from modelyard.contract.views import DryRun, OperationView
from modelyard.scheduling.explaining import explain_repetition
from modelyard.store.records import OperationRecord


async def dry_run(request: Request, gateway: Gateway, caller: Principal, key: str | None) -> DryRun:
    """Return what would become of a request; raises the `ModelyardError` that would refuse it.

    Whoever may not read jobs does not get what the record says of the hosts and other jobs.
    """
    async with gateway.reader.one(request, key, tenant=caller.tenant) as asked:
        if refusal := refuse_to_submit(caller, asked.request.operation_type):
            raise refusal
        existing = await gateway.reading.ask(lambda: gateway.acceptor.check(asked))
        if existing is not None:
            return explain_repetition(asked.request.operation_type, existing)
        found = await gateway.reading.ask_for_much(
            lambda: explanation_of_request(gateway.store, asked.operation)
        )
    return found if caller.may(Scope.JOBS_READ) else found.model_copy(update={"hosts": ()})


def submits(request: Request, verb: Verb | None = None) -> None:
    """Note that a request submits an operation, and its verb once it was read; for the metrics."""
    request.scope[VERB] = verb


async def accepted(gateway: Gateway, pending: PendingRequest) -> Accepted:
    """Make a request durable; raises the `ModelyardError` with which it is refused."""
    [outcome] = await gateway.acceptor.accept([pending])
    if isinstance(outcome, ModelyardError):
        raise outcome
    return outcome


@dataclass(frozen=True, slots=True)
class Awaited:
    """A new operation whose end a request waits for since before it was accepted."""

    new: OperationRecord
    """Without its input, which may be large."""
    waiter: WaitingRequest


def awaiting(gateway: Gateway, pending: PendingRequest, waits: ExitStack) -> Awaited | None:
    """Begin to wait for the end of a new operation, so that it need not be read to wait for it.

    Null if it may be an old one, or if too many requests wait already.
    """
    new = pending.operation
    if pending.keyed or new.accepted is None or gateway.waiters.full:
        return None
    waiter = waits.enter_context(gateway.waiters.listening(new.operation_id))
    return Awaited(new.queued().model_copy(update={"input_json": None}), waiter)


async def answered(
    gateway: Gateway,
    outcome: Accepted,
    wait_s: float | None,
    receive: Receive,
    awaited: Awaited | None = None,
) -> Response:
    """Answer 202 with the operation of an accepted request.

    With `wait_s` the answer waits up to so many seconds, and is 200 if the operation has ended by
    then. The request, which may be large, is not kept in memory meanwhile. If too many requests
    wait already, the preference is not applied. Raises `ClientDisconnect` if the client disconnects
    while it waits.
    """
    if gateway.waiters.full and awaited is None:
        wait_s = None
    ended = (
        await _ended(gateway, outcome.operation_id, wait_s, receive, awaited) if wait_s else None
    )
    headers = {"Location": operation_path(outcome.operation_id)}
    if wait_s is not None:
        headers |= {"Preference-Applied": f"wait={wait_s:.0f}", "Vary": "Prefer"}
    if ended is not None and ended.state.terminal:
        return answer(ended, headers=headers)
    if ended is not None:
        outcome = outcome.model_copy(update={"state": ended.state})
    return answer(outcome, 202, {**headers, "Retry-After": str(RETRY_AFTER_S)})


async def _ended(
    gateway: Gateway,
    operation_id: str,
    wait_s: float,
    receive: Receive,
    awaited: Awaited | None,
) -> OperationView | None:
    """Wait for the operation to end and return it; null if it can't be read now."""
    read = gateway.reading.operation
    try:
        if awaited is None:
            record = await gateway.waiters.until_end(operation_id, wait_s, read, receive)
        else:
            record = await gateway.waiters.end_of(
                awaited.new, wait_s, awaited.waiter, read, receive
            )
    except StoreUnavailableError:
        return None  # the request is accepted nevertheless
    return operation_view(record) if record else None
