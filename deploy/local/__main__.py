"""`python -m deploy.local`: the local stack from the command line."""

from __future__ import annotations

import os

import typer
from rich.console import Console
from rich.table import Table

from deploy.local import background, services
from deploy.local import demo as demonstration
from deploy.local.command_line import commands, run
from deploy.local.errors import StackError
from deploy.local.layout import ROOT, Given
from deploy.local.progress import Progress
from deploy.local.state import State

app = commands("Modelyard on this machine, with real servers.")


@app.command()
def up() -> None:
    """Start the stack in the background."""
    progress = Progress()
    state = background.up(ROOT, Given.by(os.environ), progress)
    progress.say(f"Modelyard: {state.endpoints.url}   For a shell: . var/stack.env")


@app.command()
def down() -> None:
    """Stop the stack, and remove what a crashed one has left."""
    background.down(ROOT, Progress())


@app.command()
def status() -> None:
    """Show the processes and the address of the stack."""
    state = State.load(ROOT)
    if state is None:
        Progress().say("No stack is up.")
        raise typer.Exit(1)
    Console().print(_table(state))
    answering = services.gateway_ready(state.endpoints.url)
    Progress().say(f"{state.endpoints.url} is {'ready' if answering else 'not ready'}")
    raise typer.Exit(0 if answering and state.alive else 1)


@app.command()
def env() -> None:
    """Print the addresses of the stack as lines for a shell."""
    state = State.load(ROOT)
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
