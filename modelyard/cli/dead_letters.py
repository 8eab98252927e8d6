"""The commands `modelyard dead-letters`."""

from typing import Annotated

import typer

from modelyard.cli.options import Context, Limit
from modelyard.cli.session import Part, listed, session_of
from modelyard.client.endpoints import DeadLetterFilters
from modelyard.contract.answers import DeadLetterSummary

dead_letters = typer.Typer(
    invoke_without_command=True, help="Messages that could not be processed, each with its reason."
)

DeadLetterId = Annotated[str, typer.Argument(help="The dead letter.")]


@dead_letters.callback()
def _list_by_default(ctx: Context) -> None:
    """List messages that could not be processed, or show, replay or delete one."""
    if ctx.invoked_subcommand is None:
        list_dead_letters(ctx)


@dead_letters.command("list")
def list_dead_letters(
    ctx: Context,
    *,
    reason: Annotated[str | None, typer.Option(help="A code, such as invalid_json.")] = None,
    queue: Annotated[str | None, typer.Option(help="The queue that they were taken from.")] = None,
    limit: Limit = 50,
) -> None:
    """List dead letters, newest first."""
    session = session_of(ctx)
    filters = DeadLetterFilters(reason=reason, queue=queue)

    def read(size: int, cursor: str | None) -> Part[DeadLetterSummary]:
        asked: DeadLetterFilters = {**filters, "limit": size, "cursor": cursor}
        page = session.yard.dead_letters(**asked)
        return page.dead_letters, page.next

    found, more = listed(read, limit)
    session.out.dead_letters(found)
    session.out.more(more)


@dead_letters.command("show")
def show_dead_letter(ctx: Context, dead_letter: DeadLetterId) -> None:
    """Show a dead letter with its headers and its payload."""
    session = session_of(ctx)
    session.out.one(session.yard.dead_letter(dead_letter))


@dead_letters.command("replay")
def replay_dead_letter(ctx: Context, dead_letter: DeadLetterId) -> None:
    """Publish a dead letter again; its requests become new operations each time."""
    session = session_of(ctx)
    session.out.one(session.yard.replay_dead_letter(dead_letter))


@dead_letters.command("delete")
def delete_dead_letter(ctx: Context, dead_letter: DeadLetterId) -> None:
    """Delete the record of a dead letter."""
    session_of(ctx).yard.delete_dead_letter(dead_letter)
