"""The options and arguments that several groups of commands share."""

from typing import Annotated

import typer

Context = typer.Context
File = Annotated[str, typer.Argument(help="A JSON file, or - for standard input.")]
Limit = Annotated[
    int,
    typer.Option(
        min=1, max=200, help="Entries to list at most; the HTTP API pages through older ones."
    ),
]
Wait = Annotated[bool, typer.Option("--wait", "-w", help="Show the phases until it has ended.")]
Key = Annotated[
    str | None,
    typer.Option(
        help="An idempotency key, 1 to 255 printable characters without spaces. The same key gives "
        "the same operation. Without a key each call gives a new one."
    ),
]
OnHost = Annotated[str | None, typer.Option(help="Only those on this host.")]
