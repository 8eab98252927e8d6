"""Code that the commands share: the connection, following an operation, reading JSON."""

import sys
import time
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import cast

import typer

from modelyard.cli.machine.settings import CommandLineSettings
from modelyard.cli.options import Context
from modelyard.cli.output import Output, described
from modelyard.client import Modelyard
from modelyard.client.credentials import VARIABLE
from modelyard.client.endpoints import pause_after_poll, succeeded
from modelyard.contract.answers import Accepted
from modelyard.contract.errors import InvalidRequestError
from modelyard.contract.messages import MAX_BATCH_BYTES
from modelyard.contract.states import OperationState
from modelyard.contract.strict_json import JsonValue, parse_json
from modelyard.contract.views import OperationView
from modelyard.process.config.sources import WrongSettingsError
from modelyard.process.settings import read_settings

POLL_S = 1.0
"""Seconds between two polls for another phase; the end of an operation is seen at once."""


class Session:
    """The client and the output of one command."""

    def __init__(self, url: str | None, *, as_json: bool) -> None:
        """`url` is the gateway's; None is the one in the settings."""
        self._url = url
        self._closing = ExitStack()
        self.out = Output(as_json=as_json)

    @cached_property
    def yard(self) -> Modelyard:
        """The client; raises `typer.BadParameter` for settings that can't be used.

        It is made when it is used: some commands need no gateway.
        """
        try:
            settings = read_settings(CommandLineSettings)
        except WrongSettingsError as error:
            raise typer.BadParameter(str(error)) from error
        key = None if settings.api_key is None else settings.api_key.get_secret_value()
        try:
            yard = Modelyard(self._url or settings.url, api_key=key)
        except ValueError as error:
            hint = VARIABLE if VARIABLE in str(error) else "--url"
            raise typer.BadParameter(str(error), param_hint=hint) from error
        self._closing.callback(yard.close)
        return yard

    def close(self) -> None:
        """Close the client, if it was used."""
        self._closing.close()


def session_of(ctx: Context) -> Session:
    """Return the session that the callback of `modelyard` has put into the context."""
    return cast("Session", ctx.obj)


def submitted(
    session: Session, request: dict[str, JsonValue], *, wait: bool, key: str | None
) -> None:
    """Submit a request and print its operation; with `wait` follow it to its end."""
    finish(session, session.yard.submit(request, idempotency_key=key), wait=wait)


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
    """Print the phases of an operation until it has succeeded.

    Raises `OperationFailed` and `TimeoutError`.
    """
    ended = until_end(session, operation_id, timeout_s)
    if session.out.as_json and ended.state is not OperationState.SUCCEEDED:
        session.out.one(ended)
    return succeeded(ended)


def until_end(session: Session, operation_id: str, timeout_s: float | None) -> OperationView:
    """Print the phases of an operation until it has ended; raises `TimeoutError`."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    printed = ""
    while True:
        began = time.monotonic()
        left = POLL_S if deadline is None else max(min(deadline - began, POLL_S), 0.0)
        left = left if printed else 0.0  # the first state is printed at once
        view = session.yard.operation(operation_id, wait_s=left)
        if (line := described(view)) != printed:
            session.out.note(line)
            printed = line
        if view.state.terminal:
            return view
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError(f"operation {operation_id} is still {view.state}")
        time.sleep(pause_after_poll(time.monotonic() - began, left))


def json_text(text: str) -> JsonValue:
    """Read an option: JSON, `@` and the name of a file, or `-` for standard input."""
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
    """Return a request; raises `typer.BadParameter` if it is not a JSON object."""
    if not isinstance(value, dict):
        raise typer.BadParameter("a request is a JSON object, or a list of them")
    return value


def named(value: JsonValue) -> dict[str, JsonValue]:
    """Return a catalog entry; raises `typer.BadParameter` if it is not an object with a name."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise typer.BadParameter("the file must hold a JSON object with a name")
    return value
