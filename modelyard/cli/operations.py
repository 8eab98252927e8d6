"""The commands that read, list, cancel and retry operations."""

import re
from pathlib import Path
from typing import Annotated

import typer

from modelyard.cli.documents import write_file
from modelyard.cli.options import (
    OPERATION_OR_JOB,
    Context,
    Key,
    Limit,
    OfModel,
    OnHost,
    OperationOrJob,
    Wait,
    a_number,
)
from modelyard.cli.printing.contents import described_content
from modelyard.cli.session import (
    ended_without_success,
    finish,
    followed,
    has_result,
    operation_of,
    operations_listed,
    session_of,
    until_end,
)
from modelyard.client import OperationFailed
from modelyard.client.endpoints import OperationFilters
from modelyard.contract.ids import OPERATION_ID_PATTERN
from modelyard.contract.states import OperationState, Verb

Timeout = Annotated[
    float | None,
    typer.Option(
        min=0,
        callback=a_number,
        help="Seconds to wait at most; the operation goes on after that. Without it the command "
        "waits until the operation has ended.",
    ),
]


def cancel(ctx: Context, operation: OperationOrJob, *, wait: Wait = False) -> None:
    """Ask to cancel an operation; --wait waits until it is CANCELLED."""
    session = session_of(ctx)
    operation_id = operation_of(session, operation)
    view = session.yard.cancel(operation_id)
    if wait:
        view = until_end(session, operation_id, None)
        if view.state is not OperationState.CANCELLED:
            raise OperationFailed(view)
    session.out.one(view)


def delete(ctx: Context, operation: Annotated[str, typer.Argument(help="The operation.")]) -> None:
    """Delete an operation that has ended, with its result, its events and its input.

    An uploaded input is removed at the earliest a day after a request named it.
    """
    session_of(ctx).yard.delete_operation(operation)


def retry(
    ctx: Context,
    operation: Annotated[
        str,
        typer.Argument(
            metavar=OPERATION_OR_JOB,
            help="The operation; or its job: the newest of the job's that ended without success.",
        ),
    ],
    *,
    wait: Wait = False,
    key: Key = None,
) -> None:
    """Submit the request of an operation that ended without success again.

    It becomes a new operation. --wait shows its phases and prints its answer.
    """
    session = session_of(ctx)
    operation_id = operation_of(session, operation, ended_without_success)
    finish(session, session.yard.retry(operation_id, idempotency_key=key), wait=wait)


def status(ctx: Context, id: Annotated[str, typer.Argument(help="An operation or a job.")]) -> None:  # noqa: A002
    """Show an operation, or a job."""
    session = session_of(ctx)
    if re.fullmatch(OPERATION_ID_PATTERN, id):
        session.out.one(session.yard.operation(id))
    else:
        session.out.one(session.yard.job(id))


def explain(ctx: Context, operation: OperationOrJob) -> None:
    """Explain why an operation has not started."""
    session = session_of(ctx)
    session.out.explanation(session.yard.explain(operation_of(session, operation)))


def result(
    ctx: Context,
    operation: Annotated[
        str,
        typer.Argument(
            metavar=OPERATION_OR_JOB,
            help="The operation; or its job: the newest of the job's that has a result.",
        ),
    ],
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write it to this file, as the model gave it.", dir_okay=False
        ),
    ] = None,
) -> None:
    """Print an operation's result, or write it to a file.

    What is no text is not printed on a terminal: a line says what it is. Into a pipe it goes as it
    is.
    """
    session = session_of(ctx)
    content = session.yard.content(operation_of(session, operation, has_result))
    if output is None:
        session.out.content(content)
    else:
        write_file(output, content.content)
        session.out.note(f"{output}: {described_content(content)}")


def wait(ctx: Context, operation: OperationOrJob, timeout: Timeout = None) -> None:
    """Show an operation's phases until it has ended."""
    session = session_of(ctx)
    session.out.one(followed(session, operation_of(session, operation), timeout))


def list_operations(  # noqa: PLR0913 - options
    ctx: Context,
    *,
    state: Annotated[
        OperationState | None,
        typer.Option(help="Only those in this state.", case_sensitive=False),
    ] = None,
    job: Annotated[str | None, typer.Option(help="Only those of this job.")] = None,
    model: OfModel = None,
    host: OnHost = None,
    verb: Annotated[
        Verb | None, typer.Option(help="Only those with this verb.", case_sensitive=False)
    ] = None,
    limit: Limit = 50,
) -> None:
    """List operations, newest first."""
    session = session_of(ctx)
    filters = OperationFilters(
        state=state, job_id=job, model=model, host_id=host, operation_type=verb, limit=limit
    )
    found, more = operations_listed(session, filters)
    session.out.operations(found)
    session.out.more(more)
