"""Decodes a delivery: first the envelope, then each command, so a bad one affects no other."""

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from modelyard.contract.catalog.rules import AS_RECORDED
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.ids import Id
from modelyard.contract.messages import HostCommand, Message
from modelyard.contract.validation import first_errors

if TYPE_CHECKING:
    from modelyard.contract.catalog.entries import ModelSpec


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


MAX_SPECS = 1_000
"""Jobs whose model specs are remembered."""


class ParsedSpecs:
    """The model specs of the latest jobs: every command has one, which is almost always the same.

    To validate it takes as long as the rest of the command and the envelope together.
    """

    def __init__(self) -> None:
        self._of_job: OrderedDict[str, tuple[object, ModelSpec]] = OrderedDict()

    def apply(self, command: object) -> object:
        """Return the command with its spec as it was parsed before, if it is equal."""
        if not isinstance(command, dict) or not isinstance(job_id := command.get("job_id"), str):
            return command
        given, spec = self._of_job.get(job_id, (None, None))
        return {**command, "model": spec} if spec and command.get("model") == given else command

    def keep(self, given: object, command: HostCommand) -> None:
        """Remember the spec of a command that was validated; `given` is the command as it came."""
        if isinstance(given, dict):
            self._of_job[command.job_id] = (given.get("model"), command.model)
            self._of_job.move_to_end(command.job_id)
        if len(self._of_job) > MAX_SPECS:
            self._of_job.popitem(last=False)


def read_commands(
    envelope: CommandEnvelope, specs: ParsedSpecs
) -> tuple[list[HostCommand], list[UnreadableCommand]]:
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
            parsed = HostCommand.model_validate(
                specs.apply(command), context=AS_RECORDED, extra="ignore"
            )
            specs.keep(command, parsed)
            good.append(parsed)
        except ValidationError as error:
            alone = {**envelope.model_dump(exclude={"commands"}), "commands": [command]}
            body = json.dumps(alone).encode()
            bad.append(
                UnreadableCommand(_error_info(ErrorCode.INVALID_REQUEST, "a command", error), body)
            )
    return good, bad


def _error_info(reason: ErrorCode, wanted: str, error: ValidationError) -> ErrorInfo:
    return ErrorInfo(code=reason, message=f"Not {wanted}: {first_errors(error)}")
