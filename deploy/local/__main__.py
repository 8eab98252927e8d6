"""`python -m deploy.local`: the local stack from the command line."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from deploy.local import background, services
from deploy.local import demo as demonstration
from deploy.local.caller_settings import CallerSettings
from deploy.local.command_line import commands, run
from deploy.local.errors import StackError
from deploy.local.layout import ROOT, Given, Layout
from deploy.local.progress import Progress
from deploy.local.state import State, environment_file

app = commands("Modelyard on this machine, with real servers.")
Stack = Annotated[
    str, typer.Option("--stack", help="The name of another stack, beside the one without a name.")
]


@app.command()
def up(stack: Stack = "") -> None:
    """Start the stack in the background, with the MODELYARD_* settings of this environment."""
    progress, layout = Progress(), Layout.background(ROOT, stack)
    given, settings = Given.by(os.environ), CallerSettings.by(os.environ)
    state = background.up(layout, given, progress, settings)
    file = os.path.relpath(environment_file(layout.home))
    progress.say(f"Modelyard: {state.endpoints.url}   For a shell: . {file}")


@app.command()
def down(
    stack: Stack = "",
    all_: Annotated[bool, typer.Option("--all", help="Stop all stacks of this checkout.")] = False,  # noqa: FBT002
) -> None:
    """Stop the stack, and remove what a crashed one has left."""
    for layout in Layout.all_in_background() if all_ else [Layout.background(ROOT, stack)]:
        background.down(layout, Progress())


@app.command()
def status(stack: Stack = "") -> None:
    """Show the processes and the address of the stack."""
    state = State.load(Layout.background(ROOT, stack).home)
    if state is None:
        Progress().say("No stack is up.")
        raise typer.Exit(1)
    Console().print(_table(state))
    answering = services.gateway_ready(state.endpoints.url)
    Progress().say(f"{state.endpoints.url} is {'ready' if answering else 'not ready'}")
    raise typer.Exit(0 if answering and state.alive else 1)


@app.command()
def env(stack: Stack = "") -> None:
    """Print the addresses of the stack as lines for a shell."""
    state = State.load(Layout.background(ROOT, stack).home)
    if state is None:
        message = "No stack is up."
        raise StackError(message)
    typer.echo(state.shell(), nl=False)


@app.command()
def demo() -> None:
    """Run the demonstration on a private stack, and stop the stack."""
    raise typer.Exit(demonstration.main())


def _table(state: State) -> Table:
    table = Table("process", "pid", "state", "log")
    for process in state.processes:
        alive = "[green]running[/green]" if process.identity.alive else "[red]gone[/red]"
        table.add_row(process.name, str(process.identity.pid), alive, process.log)
    return table


if __name__ == "__main__":
    run(app)
