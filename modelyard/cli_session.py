"""What the commands work with: the connection, following an operation, reading JSON."""

import sys
import time
from pathlib import Path

import typer

from modelyard.calls import pause_after_poll, succeeded
from modelyard.cli_output import Output, described
from modelyard.client import Modelyard
from modelyard.contract.errors import InvalidRequestError
from modelyard.contract.messages import MAX_BATCH_BYTES, OperationView
from modelyard.contract.states import OperationState
from modelyard.contract.strict_json import JsonValue, parse_json

POLL_S = 1.0
"""How often `--wait` looks for another phase; an end is seen at once."""


class Session:
    """What every command works with."""

    def __init__(self, url: str, *, as_json: bool) -> None:
        self.yard = Modelyard(url)
        self.out = Output(as_json=as_json)


def finish(session: Session, made: dict[str, JsonValue], *, wait: bool, key: str | None) -> None:
    """Submit; with `wait` follow it to its end and print its result, if it has one."""
    accepted = session.yard.submit(made, idempotency_key=key)
    if not wait:
        session.out.accepted(accepted)
        return
    ended = followed(session, accepted.operation_id, None)
    if ended.result_bytes is not None and not session.out.as_json:
        session.out.value(session.yard.result(ended))
    else:
        session.out.one(ended)


def followed(session: Session, operation_id: str, timeout_s: float | None) -> OperationView:
    """Tell the phases of an operation until it has ended.

    Raises `OperationFailed` and `TimeoutError`.
    """
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
            if session.out.as_json and view.state is not OperationState.SUCCEEDED:
                session.out.one(view)
            return succeeded(view)
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
