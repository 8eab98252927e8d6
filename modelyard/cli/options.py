"""The options and arguments that several groups of commands share."""

import math
from typing import Annotated

import typer

from modelyard.client.endpoints import InferenceOptions
from modelyard.contract.messages import MAX_PRIORITY, MIN_PRIORITY

Context = typer.Context


def a_number(seconds: float | None) -> float | None:
    """Return an option as it is; raises `typer.BadParameter` for NaN and infinity."""
    if seconds is not None and not math.isfinite(seconds):
        raise typer.BadParameter("it is a number of seconds")
    return seconds


File = Annotated[
    str, typer.Argument(help="A file of JSON or YAML (.yaml, .yml), or - for standard input.")
]
Limit = Annotated[
    int,
    typer.Option(
        min=1, help="Entries to list at most. They are read in pages of 200, as many as it takes."
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
OfModel = Annotated[str | None, typer.Option("--model", "-m", help="Only those of this model.")]
OnHost = Annotated[str | None, typer.Option(help="Only those on this host.")]
OPERATION_OR_JOB = "OPERATION|JOB"
OperationOrJob = Annotated[
    str,
    typer.Argument(
        metavar=OPERATION_OR_JOB,
        help="The operation; or its job: the one of the job's that has not ended, or if all have "
        "ended the newest.",
    ),
]
Priority = Annotated[
    int | None, typer.Option(min=MIN_PRIORITY, max=MAX_PRIORITY, help="Higher goes first.")
]
Timeout = Annotated[
    float | None,
    typer.Option(
        callback=a_number, help="Seconds that it may run at most; then it is ended as TIMED_OUT."
    ),
]
QueueTimeout = Annotated[
    float | None,
    typer.Option(
        callback=a_number,
        help="Seconds that it may wait for its start at most; then it is EXPIRED.",
    ),
]
Metadata = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=TEXT", help="A note that stays with the operation; repeatable."),
]


def options_of(
    priority: int | None,
    timeout: float | None,
    queue_timeout: float | None,
    metadata: list[str] | None,
) -> InferenceOptions:
    """Return the options that were given; raises `typer.BadParameter` for a note without `=`."""
    options = InferenceOptions()
    if priority is not None:
        options["priority"] = priority
    if timeout is not None:
        options["timeout_s"] = timeout
    if queue_timeout is not None:
        options["queue_timeout_s"] = queue_timeout
    if metadata:
        options["metadata"] = _notes(metadata)
    return options


def _notes(given: list[str]) -> dict[str, str]:
    notes: dict[str, str] = {}
    for name, value in map(_note, given):
        if name in notes:
            raise typer.BadParameter(f"{name!r} is given twice", param_hint="--metadata")
        notes[name] = value
    return notes


def _note(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"{text!r} is not NAME=TEXT", param_hint="--metadata")
    return name, value
