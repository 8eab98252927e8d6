"""Batches: each request is accepted or refused on its own, all of them in one go."""

import asyncio
from collections.abc import Mapping

from gateway.accept import Asked
from gateway.authentication import refuse_to_submit
from gateway.bodies import validated
from gateway.problems import FaultyRequestError, problem_of
from gateway.service import Gateway
from modelyard.contract.access import Principal
from modelyard.contract.answers import Accepted, BatchAnswer, BatchItem, Fault
from modelyard.contract.errors import ErrorCode, InvalidRequestError, ModelyardError
from modelyard.contract.messages import MAX_BATCH, JobRequest
from modelyard.contract.strict_json import JsonValue, dump_json

_LIST_NAME = "requests"
_IN_A_THREAD_FROM = 50
"""Requests; from here on they are checked in a thread, so that the event loop goes on."""


async def accept_batch(
    gateway: Gateway, body: JsonValue, key: str | None, caller: Principal
) -> BatchAnswer:
    """Accept what can be; the answers are in the order of the requests.

    With a key, the request at `index` has the key `KEY/index`. Raises `FaultyRequestError` if the
    body is not a batch at all.
    """
    values, under = _list_of(body)
    limit = gateway.max_request_bytes
    if len(values) < _IN_A_THREAD_FROM:
        read = _read_all(values, under, key, limit, caller)
    else:
        read = await asyncio.to_thread(_read_all, values, under, key, limit, caller)
    valid = [one for one in read if isinstance(one, Asked)]
    outcomes = iter(await gateway.acceptor.accept(valid))
    return BatchAnswer(
        results=tuple(
            _item(next(outcomes) if isinstance(one, Asked) else one, values[index])
            for index, one in enumerate(read)
        )
    )


def _list_of(body: JsonValue) -> tuple[list[JsonValue], str]:
    """Return the requests and the pointer to their list: a bare one, or in `requests`."""
    values, under = body, ""
    if isinstance(body, Mapping):
        unknown = sorted(body.keys() - {_LIST_NAME})
        if unknown:
            raise FaultyRequestError(
                [
                    Fault(pointer=_step(name), message="Extra inputs are not permitted")
                    for name in unknown
                ]
            )
        values, under = body.get(_LIST_NAME), f"/{_LIST_NAME}"
    if not isinstance(values, list):
        message = 'A batch is a list of requests, bare or as {"requests": [...]}.'
        raise FaultyRequestError([Fault(pointer=under, message=message)])
    if not 1 <= len(values) <= MAX_BATCH:
        message = f"It holds {len(values)} requests."
        raise FaultyRequestError([Fault(pointer=under, message=message)], ErrorCode.BATCH_TOO_LARGE)
    return values, under


def _read_all(
    values: list[JsonValue], under: str, key: str | None, max_bytes: int, caller: Principal
) -> list[Asked | ModelyardError]:
    return [
        _read(value, f"{under}/{index}", f"{key}/{index}" if key else None, max_bytes, caller)
        for index, value in enumerate(values)
    ]


def _read(
    value: JsonValue, under: str, key: str | None, max_bytes: int, caller: Principal
) -> Asked | ModelyardError:
    try:
        request = validated(JobRequest, value, under=under)
    except FaultyRequestError as error:
        return error
    if request.input is not None and len(dump_json(value).encode()) > max_bytes:
        return InvalidRequestError(
            ErrorCode.BODY_TOO_LARGE, f"At most {max_bytes} bytes are taken for one request."
        )
    if refusal := refuse_to_submit(caller, request.operation_type):
        return refusal
    return Asked.of(request, key, under=under, tenant=caller.tenant)


def _item(outcome: Accepted | ModelyardError, value: JsonValue) -> BatchItem:
    if isinstance(outcome, Accepted):
        return BatchItem(
            status=202,
            operation_id=outcome.operation_id,
            job_id=outcome.job_id,
            state=outcome.state,
            links=outcome.links,
        )
    problem = problem_of(outcome)
    named = value.get("job_id") if isinstance(value, Mapping) else None
    return BatchItem(
        status=problem.status,
        job_id=named if isinstance(named, str) else None,
        problem=problem,
    )


def _step(name: str) -> str:
    return "/" + name[:128].replace("~", "~0").replace("/", "~1")
