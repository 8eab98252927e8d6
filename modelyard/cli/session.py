"""Code that the commands share: the connection, following an operation, finding one of a job."""

import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import TypeVar, cast

import typer

from modelyard.cli.machine.settings import CommandLineSettings
from modelyard.cli.options import Context
from modelyard.cli.printing.output import Output, described
from modelyard.client import Modelyard, ServiceUnavailableError
from modelyard.client.credentials import VARIABLE
from modelyard.client.endpoints import (
    LARGEST_PAGE,
    JobFilters,
    OperationFilters,
    pause_after_poll,
    succeeded,
)
from modelyard.client.retry import Outage
from modelyard.contract.answers import Accepted
from modelyard.contract.ids import OPERATION_ID_PATTERN
from modelyard.contract.states import OperationState
from modelyard.contract.strict_json import JsonValue
from modelyard.contract.views import JobView, OperationView
from modelyard.process.config.sources import WrongSettingsError
from modelyard.process.settings import read_settings

T = TypeVar("T")
Part = tuple[Sequence[T], str | None]
"""Some entries of a list, and the cursor of what comes after them, if there is more."""

_MOST_OPEN = 1_000
POLL_S = 1.0
"""Seconds between two polls for another phase; the end of an operation is seen at once."""


class Session:
    """The client and the output of one command."""

    def __init__(self, url: str | None, *, as_json: bool) -> None:
        """`url` is the gateway's; None is the one in the settings."""
        self._url = url
        self._closing = ExitStack()
        self.out = Output(as_json=as_json)

    @cached_property
    def yard(self) -> Modelyard:
        """The client; raises `typer.BadParameter` for settings that can't be used.

        It is made when it is used: some commands need no gateway.
        """
        try:
            settings = read_settings(CommandLineSettings)
        except WrongSettingsError as error:
            raise typer.BadParameter(str(error)) from error
        key = None if settings.api_key is None else settings.api_key.get_secret_value()
        try:
            yard = Modelyard(self._url or settings.url, api_key=key)
        except ValueError as error:
            hint = VARIABLE if VARIABLE in str(error) else "--url"
            raise typer.BadParameter(str(error), param_hint=hint) from error
        self._closing.callback(yard.close)
        return yard

    def close(self) -> None:
        """Close the client, if it was used."""
        self._closing.close()


class InterruptedWaitError(Exception):
    """The user ended a wait; the operation goes on."""

    def __init__(self, operation_id: str) -> None:
        self.operation_id = operation_id
        super().__init__(
            f"Operation {operation_id} goes on. `modelyard wait {operation_id}` follows it again, "
            f"`modelyard cancel {operation_id}` ends it."
        )


def session_of(ctx: Context) -> Session:
    """Return the session that the callback of `modelyard` has put into the context."""
    return cast("Session", ctx.obj)


def submitted(
    session: Session, request: dict[str, JsonValue], *, wait: bool, key: str | None
) -> None:
    """Submit a request and print its operation; with `wait` follow it to its end."""
    finish(session, session.yard.submit(request, idempotency_key=key), wait=wait)


def finish(session: Session, accepted: Accepted, *, wait: bool) -> None:
    """Print the operation; with `wait` follow it to its end and print its result, if it has one."""
    if not wait:
        session.out.accepted(accepted)
        return
    session.out.note(f"operation {accepted.operation_id}")
    ended = followed(session, accepted.operation_id, None)
    if ended.result_bytes is not None and not session.out.as_json:
        session.out.content(session.yard.content(ended))
    else:
        session.out.one(ended)


def followed(session: Session, operation_id: str, timeout_s: float | None) -> OperationView:
    """Print the phases of an operation until it has succeeded.

    Raises `OperationFailed`, `InterruptedWaitError` and `TimeoutError`.
    """
    ended = until_end(session, operation_id, timeout_s)
    if session.out.as_json and ended.state is not OperationState.SUCCEEDED:
        session.out.one(ended)
    return succeeded(ended)


def until_end(session: Session, operation_id: str, timeout_s: float | None) -> OperationView:
    """Print the phases of an operation until it has ended.

    A gateway that does not answer is waited for, for two minutes. Raises `InterruptedWaitError`,
    `ServiceUnavailableError` and `TimeoutError`.
    """
    try:
        return _until_end(session, operation_id, timeout_s)
    except KeyboardInterrupt as interrupt:
        raise InterruptedWaitError(operation_id) from interrupt


def _until_end(session: Session, operation_id: str, timeout_s: float | None) -> OperationView:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    printed = ""
    outage = Outage()
    while True:
        began = time.monotonic()
        left = POLL_S if deadline is None else max(min(deadline - began, POLL_S), 0.0)
        left = left if printed else 0.0  # the first state is printed at once
        try:
            view = session.yard.operation(operation_id, wait_s=left)
        except ServiceUnavailableError as error:
            if not outage.lasts:
                session.out.note(f"{error.detail}. Trying again.")
            time.sleep(outage.pause_after(error, deadline))
            continue
        outage.ends()
        if (line := described(view)) != printed:
            session.out.note(line)
            printed = line
        if view.state.terminal:
            return view
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError(_still(view))
        time.sleep(pause_after_poll(time.monotonic() - began, left))


def _still(view: OperationView) -> str:
    """Return what a user is told, and may do, if an operation has not ended in time."""
    waits = view.state is OperationState.QUEUED
    why = f" `modelyard explain {view.operation_id}` says what it waits for." if waits else ""
    return (
        f"operation {view.operation_id} is still {view.state}, and goes on.{why} "
        f"`modelyard wait {view.operation_id}` follows it again."
    )


# --- lists ---


def listed(read: Callable[[int, str | None], Part[T]], most: int) -> Part[T]:
    """Read a list until it ends or has `most` entries, in as many pages as that takes.

    `read` gets the size of a page and the cursor at which it begins. Raises `ApiError`.
    """
    found: list[T] = []
    cursor: str | None = None
    while True:
        page, cursor = read(min(most - len(found), LARGEST_PAGE), cursor)
        found += page
        if cursor is None or len(found) >= most:
            return found, cursor


def operations_listed(session: Session, filters: OperationFilters) -> Part[OperationView]:
    """Read operations, newest first; the filter `limit` may be larger than a page."""

    def read(size: int, cursor: str | None) -> Part[OperationView]:
        asked: OperationFilters = {**filters, "limit": size, "cursor": cursor}
        page = session.yard.operations(**asked)
        return page.operations, page.next

    return listed(read, filters["limit"])


def jobs_listed(session: Session, filters: JobFilters) -> Part[JobView]:
    """Read jobs, newest first; the filter `limit` may be larger than a page."""

    def read(size: int, cursor: str | None) -> Part[JobView]:
        asked: JobFilters = {**filters, "limit": size, "cursor": cursor}
        page = session.yard.jobs(**asked)
        return page.jobs, page.next

    return listed(read, filters["limit"])


# --- an operation of a job ---


def operation_of(
    session: Session, given: str, fits: Callable[[OperationView], bool] | None = None
) -> str:
    """Return the id of an operation that is given by its id, or by its job where it is clear.

    Of a job it is the newest that `fits`; without `fits` the one that has not ended. If there is no
    such operation it is the newest. Raises `AmbiguousJobError` if several have not ended, and
    `ApiError` if there is no such job.
    """
    if re.fullmatch(OPERATION_ID_PATTERN, given):
        return given
    chosen = _newest(session, given, fits) if fits else _open(session, given)
    if chosen is None:
        newest = session.yard.operations(job_id=given, limit=1).operations
        chosen = newest[0] if newest else None
    if chosen is None:
        session.yard.job(given)
        raise AmbiguousJobError(given, ())
    session.out.note(f"operation {chosen.operation_id}")
    return chosen.operation_id


def _open(session: Session, job_id: str) -> OperationView | None:
    """Return the operation of a job that has not ended; raises `AmbiguousJobError`."""
    # They are asked for by state: any number of operations may have ended since they were accepted.
    found: dict[str, OperationView] = {}
    for state in OperationState:
        if not state.terminal:
            filters = OperationFilters(job_id=job_id, state=state, limit=_MOST_OPEN)
            found |= {one.operation_id: one for one in operations_listed(session, filters)[0]}
    if len(found) > 1:
        raise AmbiguousJobError(job_id, list(found.values()))
    return next(iter(found.values()), None)


def has_result(operation: OperationView) -> bool:
    """Tell whether an operation has a result."""
    return operation.result_bytes is not None


def ended_without_success(operation: OperationView) -> bool:
    """Tell whether an operation has ended in a way that it can be retried."""
    return operation.state.terminal and operation.state is not OperationState.SUCCEEDED


def _newest(
    session: Session, job_id: str, fits: Callable[[OperationView], bool]
) -> OperationView | None:
    """Return the newest operation of a job that fits."""
    cursor: str | None = None
    while True:
        page = session.yard.operations(job_id=job_id, limit=LARGEST_PAGE, cursor=cursor)
        found = next((one for one in page.operations if fits(one)), None)
        cursor = page.next
        if found is not None or cursor is None:
            return found


class AmbiguousJobError(Exception):
    """A job does not say which operation is meant: it has none, or several that have not ended."""

    def __init__(self, job_id: str, found: "tuple[()] | list[OperationView]") -> None:
        if not found:
            super().__init__(f"Job {job_id} has no operation.")
            return
        listed = "".join(f"\n  {one.operation_id}  {described(one)}" for one in found[:5])
        more = f"\n  and {len(found) - 5} more" if len(found) > 5 else ""  # noqa: PLR2004
        super().__init__(
            f"Job {job_id} has {len(found)} operations that have not ended; name one:{listed}{more}"
        )
