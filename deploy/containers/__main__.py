"""`python -m deploy.containers`: images of the services, and the demonstration in containers."""

from __future__ import annotations

import typer
from rich.table import Table

from deploy.containers import demo as demonstration
from deploy.containers.checks import check
from deploy.containers.engine import engine
from deploy.containers.service_images import TARGETS, ensure_service_images
from deploy.local.command_line import commands, run
from deploy.local.progress import Progress

app = commands("Modelyard in containers.")


@app.command()
def images() -> None:
    """Build the images of the services, test them, and print their sizes."""
    progress = Progress()
    with engine(progress) as docker_host:
        ensure_service_images(docker_host, progress.say)
        checked = [check(docker_host, target) for target in TARGETS]
    table = Table("image", "size", "without its base")
    for one in checked:
        table.add_row(one.name, f"{one.size / 1e6:.0f} MB", f"{one.own_size / 1e6:.0f} MB")
    progress.console.print(table)
    faults = [f"{one.name}: {fault}" for one in checked for fault in one.faults]
    for fault in faults:
        progress.say(fault)
    progress.say("All checks passed." if not faults else "Some checks failed.")
    raise typer.Exit(1 if faults else 0)


@app.command()
def demo() -> None:
    """Run the demonstration on deploy/compose.yaml, and remove what it has started."""
    raise typer.Exit(demonstration.main())


if __name__ == "__main__":
    run(app)
