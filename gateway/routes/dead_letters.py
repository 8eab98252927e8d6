"""`/v1/dead-letters`: messages that could not be handled; list, read, replay and delete them."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from pydantic import Field, StringConstraints

from gateway import openapi
from gateway.access.authentication import needs
from gateway.monitoring.operator_log import log_change
from gateway.routes.dependencies import (
    GatewayDependencies,
    PageQuery,
    answer,
    page_answer,
    refuse_repeated,
)
from gateway.views import dead_letter_path, dead_letter_summary, dead_letter_view
from modelyard.contract.access.scopes import Principal, Scope
from modelyard.contract.answers import DeadLetterPage, DeadLetterSummary, DeadLetterView
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.ids import Id, MustBe
from modelyard.store.records import DeadLetter

# One dependency, so that a request is authenticated once.
_NEEDED = needs(Scope.DEAD_LETTERS)

router = APIRouter(prefix="/v1/dead-letters", tags=["dead letters"], dependencies=[_NEEDED])

Operator = Annotated[Principal, _NEEDED]


Reason = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9_]{1,64}$"),
    MustBe("a code such as invalid_json: 1 to 64 lower-case letters, digits and `_`"),
]
QueueName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,255}$"),
    MustBe("1 to 255 letters, digits, `_`, `.` and `-`"),
]


class DeadLetterQuery(PageQuery):
    """Filters of the list of dead letters."""

    reason: Reason | None = Field(default=None, description="A code.")
    queue: QueueName | None = None


@router.get(
    "",
    response_model=DeadLetterPage,
    responses=openapi.FILTERED_LIST_ANSWERS,
    dependencies=[Depends(refuse_repeated)],
    summary="List dead letters, newest first",
)
async def list_dead_letters(
    gateway: GatewayDependencies, query: Annotated[DeadLetterQuery, Query()]
) -> Response:
    """Return a page of dead letters, without their headers and payloads."""
    after, filters = query.after(), query.criteria()
    page = await gateway.reading.ask_for_much(
        lambda: gateway.store.dead_letters.page(filters, after=after, limit=query.limit),
        filtered=bool(filters),
    )
    cursor = page.next.cursor() if page.next else None
    summaries = tuple(dead_letter_summary(record) for record in page.items)
    content = DeadLetterPage(dead_letters=summaries, next=cursor)
    return page_answer(content, query, "/v1/dead-letters", cursor)


@router.get(
    "/{dead_letter_id}",
    response_model=DeadLetterView,
    responses=openapi.ONE_ANSWERS,
    summary="Read a dead letter",
)
async def read_dead_letter(dead_letter_id: Id, gateway: GatewayDependencies) -> Response:
    """Return one dead letter with its headers and its payload."""
    record = await gateway.reading.ask(lambda: gateway.store.dead_letters.get(dead_letter_id))
    return answer(dead_letter_view(_found(record, dead_letter_id)))


@router.post(
    "/{dead_letter_id}/replay",
    status_code=202,
    response_model=DeadLetterSummary,
    responses=openapi.REPLAY_ANSWERS,
    summary="Publish a dead letter again",
)
async def replay_dead_letter(
    dead_letter_id: Id, gateway: GatewayDependencies, operator: Operator
) -> Response:
    """Publish the requests of a dead letter again; they become new operations.

    Each call publishes them once more. After a 503 they may have been published nevertheless.
    """
    record = _found(await gateway.replays.replay(dead_letter_id), dead_letter_id)
    log_change(operator, "dead_letter.replay", dead_letter_id=dead_letter_id)
    headers = {"Location": dead_letter_path(dead_letter_id)}
    return answer(dead_letter_summary(record), 202, headers)


@router.delete(
    "/{dead_letter_id}",
    status_code=204,
    responses=openapi.ONE_ANSWERS,
    summary="Delete a dead letter",
)
async def delete_dead_letter(
    dead_letter_id: Id, gateway: GatewayDependencies, operator: Operator
) -> Response:
    """Delete the record of a dead letter."""
    done = await gateway.reading.ask(lambda: gateway.store.dead_letters.delete(dead_letter_id))
    if not done:
        raise _no_such(dead_letter_id)
    log_change(operator, "dead_letter.delete", dead_letter_id=dead_letter_id)
    return Response(status_code=204)


def _found(record: DeadLetter | None, dead_letter_id: str) -> DeadLetter:
    if record is None:
        raise _no_such(dead_letter_id)
    return record


def _no_such(dead_letter_id: str) -> ModelyardError:
    return ModelyardError(ErrorCode.NOT_FOUND, f"There is no dead letter {dead_letter_id}.")
