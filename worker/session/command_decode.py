"""Decodes a delivery: first the envelope, then each command, so a bad one affects no other."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from modelyard.contract.catalog.rules import AS_RECORDED
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.ids import Id
from modelyard.contract.messages import HostCommand, Message
from modelyard.contract.validation import first_errors


class CommandEnvelope(Message):
    """`HostCommands` whose commands are not parsed yet."""

    schema_version: Literal[1] = 1
    host_id: Id
    incarnation: str
    commands: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class UnreadableCommand:
    """A message body for the dead letters, and the reason."""

    error: ErrorInfo
    body: bytes


def read_envelope(body: bytes) -> CommandEnvelope | UnreadableCommand:
    """Parse the envelope, not its commands."""
    try:
        return CommandEnvelope.model_validate_json(body)
    except ValidationError as error:
        kinds = {detail["type"] for detail in error.errors(include_url=False, include_input=False)}
        not_json = "json_invalid" in kinds
        reason = ErrorCode.INVALID_JSON if not_json else ErrorCode.INVALID_REQUEST
        return UnreadableCommand(_error_info(reason, "a list of commands", error), body)


def read_commands(envelope: CommandEnvelope) -> tuple[list[HostCommand], list[UnreadableCommand]]:
    """Return the readable commands, and each unreadable one in an envelope of its own.

    Unknown fields are ignored, in catalog specs too: a dispatcher may be newer than its workers,
    and the gateway has already refused unknown fields that a client sent. The rules of the catalog
    are not checked here: a job whose model breaks one can still be unloaded and terminated. Before
    a container is created `containers.planning` checks them.
    """
    good: list[HostCommand] = []
    bad: list[UnreadableCommand] = []
    for command in envelope.commands:
        try:
            good.append(HostCommand.model_validate(command, context=AS_RECORDED, extra="ignore"))
        except ValidationError as error:
            alone = {**envelope.model_dump(exclude={"commands"}), "commands": [command]}
            body = json.dumps(alone).encode()
            bad.append(
                UnreadableCommand(_error_info(ErrorCode.INVALID_REQUEST, "a command", error), body)
            )
    return good, bad


def _error_info(reason: ErrorCode, wanted: str, error: ValidationError) -> ErrorInfo:
    return ErrorInfo(code=reason, message=f"Not {wanted}: {first_errors(error)}")
