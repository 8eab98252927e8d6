"""What the commands `python -m deploy.…` share: how they look, and how they report an error."""

from __future__ import annotations

import typer
from rich.console import Console

from deploy.local.errors import StackError


def commands(purpose: str) -> typer.Typer:
    """Return an empty set of commands."""
    return typer.Typer(
        help=purpose,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )


def run(app: typer.Typer) -> None:
    """Run a command; print a `StackError` as a message and exit with status 1."""
    try:
        app()
    except StackError as error:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(str(error))
        raise SystemExit(1) from None
