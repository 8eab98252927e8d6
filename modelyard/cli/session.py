"""What the commands share: the connection, options, following an operation, reading JSON."""

import sys
import time
from pathlib import Path
from typing import Annotated, cast

import typer

from modelyard.cli.output import Output, described
from modelyard.client import Modelyard
from modelyard.client.endpoints import pause_after_poll, succeeded
from modelyard.contract.answers import Accepted
from modelyard.contract.errors import InvalidRequestError
from modelyard.contract.messages import MAX_BATCH_BYTES
from modelyard.contract.states import OperationState
from modelyard.contract.strict_json import JsonValue, parse_json
from modelyard.contract.views import OperationView

Context = typer.Context
File = Annotated[str, typer.Argument(help="A JSON file, or - for standard input.")]
Limit = Annotated[
    int,
    typer.Option(
        min=1, max=200, help="Entries at the most; older ones are had by HTTP, with its cursor."
    ),
]

POLL_S = 1.0
"""How often `--wait` looks for another phase; an end is seen at once."""


class Session:
    """What every command works with."""

    def __init__(self, url: str, *, as_json: bool) -> None:
        self.yard = Modelyard(url)
        self.out = Output(as_json=as_json)


def session_of(ctx: Context) -> Session:
    """Return what a command works with."""
    return cast("Session", ctx.obj)


def submitted(session: Session, made: dict[str, JsonValue], *, wait: bool, key: str | None) -> None:
    """Submit, and print what it became, or with `wait` its end."""
    finish(session, session.yard.submit(made, idempotency_key=key), wait=wait)


def finish(session: Session, accepted: Accepted, *, wait: bool) -> None:
    """Print the operation; with `wait` follow it to its end and print its result, if it has one."""
    if not wait:
        session.out.accepted(accepted)
        return
    ended = followed(session, accepted.operation_id, None)
    if ended.result_bytes is not None and not session.out.as_json:
        session.out.value(session.yard.result(ended))
    else:
        session.out.one(ended)


def followed(session: Session, operation_id: str, timeout_s: float | None) -> OperationView:
    """Tell the phases of an operation until it has succeeded.

    Raises `OperationFailed` and `TimeoutError`.
    """
    ended = until_end(session, operation_id, timeout_s)
    if session.out.as_json and ended.state is not OperationState.SUCCEEDED:
        session.out.one(ended)
    return succeeded(ended)


def until_end(session: Session, operation_id: str, timeout_s: float | None) -> OperationView:
    """Tell the phases of an operation until it has ended; raises `TimeoutError`."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    told = ""
    while True:
        began = time.monotonic()
        left = POLL_S if deadline is None else max(min(deadline - began, POLL_S), 0.0)
        left = left if told else 0.0  # the first look is told at once
        view = session.yard.operation(operation_id, wait_s=left)
        if (now := described(view)) != told:
            session.out.note(now)
            told = now
        if view.state.terminal:
            return view
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError(f"operation {operation_id} is still {view.state}")
        time.sleep(pause_after_poll(time.monotonic() - began, left))


def json_text(text: str) -> JsonValue:
    """Read an option that is JSON, names a file with it, or says that it comes on stdin."""
    if text == "-" or text.startswith("@"):
        return json_file(text.removeprefix("@"))
    return _parsed(text.encode(), "the option --input")


def json_file(name: str) -> JsonValue:
    """Read a file of JSON; `-` is standard input."""
    if name == "-":
        return _parsed(sys.stdin.buffer.read(), "standard input")
    try:
        return _parsed(Path(name).read_bytes(), name)
    except OSError as error:
        raise typer.BadParameter(f"{name}: {error.strerror}") from error


def _parsed(content: bytes, source: str) -> JsonValue:
    try:
        return parse_json(content, max_bytes=MAX_BATCH_BYTES)
    except InvalidRequestError as error:
        raise typer.BadParameter(f"{source}: {error.message}") from error


def mapping(value: JsonValue) -> dict[str, JsonValue]:
    """Return a request that is an object, as each must be."""
    if not isinstance(value, dict):
        raise typer.BadParameter("a request is a JSON object, or a list of them")
    return value


def named(value: JsonValue) -> dict[str, JsonValue]:
    """Return a catalog entry that has a name, as each must have."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise typer.BadParameter("the file must hold a JSON object with a name")
    return value
