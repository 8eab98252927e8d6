"""Shared by the routes: access to the gateway, pages of lists, and JSON answers."""

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, cast
from urllib.parse import urlencode

from fastapi import Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from gateway.problems import FaultyRequestError
from gateway.service import Gateway
from modelyard.contract.answers import Fault
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.ids import MustBe
from modelyard.contract.validation import MAX_LISTED_ERRORS, MAX_POINTER_CHARS
from modelyard.store.deleting.deletions import Deletion, Fate
from modelyard.store.paging import CURSOR_PATTERN, NAME_CURSOR_PATTERN, Position

DEFAULT_PAGE = 50
MAX_PAGE = 200
_A_CURSOR = MustBe("the cursor in `next` of the previous page, as it is there")
_CURSOR = "`next` of the previous page; all other parameters must be the same as there."


async def _gateway(request: Request) -> Gateway:
    return cast("Gateway", request.app.state.gateway)


GatewayDependencies = Annotated[Gateway, Depends(_gateway)]


class ListQuery(BaseModel):
    """The parameters of every list. An unknown filter is refused, not ignored."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=DEFAULT_PAGE, ge=1, le=MAX_PAGE, description="Entries per page.")
    cursor: str | None = None

    def criteria(self) -> dict[str, str]:
        """Return the filters, keyed by field of the record."""
        return self.model_dump(mode="json", exclude={"limit", "cursor"}, exclude_none=True)

    def next_url(self, path: str, cursor: str) -> str:
        """Return the URL of the next page."""
        query = {**self.criteria_as_given(), "limit": str(self.limit), "cursor": cursor}
        return f"{path}?{urlencode(query)}"

    def criteria_as_given(self) -> dict[str, str]:
        """Return the filters, keyed by query parameter."""
        return self.criteria()


class PageQuery(ListQuery):
    """The parameters of a list that is ordered by time."""

    cursor: Annotated[str, StringConstraints(pattern=CURSOR_PATTERN), _A_CURSOR] | None = Field(
        default=None, description=_CURSOR
    )

    def after(self) -> Position | None:
        """Return the position after which the page starts."""
        return None if self.cursor is None else Position.parse(self.cursor)


class NamedPageQuery(ListQuery):
    """The parameters of a list that is ordered by name."""

    cursor: Annotated[str, StringConstraints(pattern=NAME_CURSOR_PATTERN), _A_CURSOR] | None = (
        Field(default=None, description=_CURSOR)
    )


async def refuse_repeated(request: Request) -> None:
    """Refuse a parameter that was sent twice: the gateway would have to guess which one counts."""
    counts = Counter(name for name, _ in request.query_params.multi_items())
    repeated = sorted(name for name, count in counts.items() if count > 1)
    if repeated:
        raise FaultyRequestError(
            [
                Fault(parameter=name[:MAX_POINTER_CHARS], message="It was sent twice.")
                for name in repeated[:MAX_LISTED_ERRORS]
            ]
        )


def answer(
    content: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a JSON answer."""
    return Response(
        content.model_dump_json(),
        status_code=status,
        headers=dict(headers or {}),
        media_type="application/json",
    )


def page_answer(content: BaseModel, query: ListQuery, path: str, cursor: str | None) -> Response:
    """Return the answer for a page, with a `Link` to the next one."""
    link = f'<{query.next_url(path, cursor)}>; rel="next"' if cursor else None
    return answer(content, headers={"Link": link} if link else None)


def deleted(done: Deletion, what: str) -> None:
    """Return if a record was deleted; else raise `not_found` or `still_in_use`."""
    if done.fate is Fate.MISSING:
        raise ModelyardError(ErrorCode.NOT_FOUND, f"There is no {what}.")
    if done.fate is Fate.IN_USE:
        raise ModelyardError(ErrorCode.STILL_IN_USE, done.reason)
