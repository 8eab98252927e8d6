"""Settings that all three processes share: variables, errors and help.

Each process has a `settings.py` with a class derived from one of these. Only that class reads the
environment, and only `__main__` builds it.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, NoReturn, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from modelyard import __version__
from modelyard.process.addresses import parse_address
from modelyard.process.logging import LogFormat, LogLevel

PREFIX = "MODELYARD_"
EXIT_WRONG_SETTINGS = 2


class WrongSettingsError(Exception):
    """A setting can't be used; the message is one sentence that names the variable."""


@dataclass(frozen=True, slots=True)
class Expects:
    """The expected value in words, for error messages where pydantic's own say too little."""

    words: str


def _parsed(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise PydanticCustomError("no_json", "JSON") from error


JSON = BeforeValidator(_parsed)
"""For a field whose variable holds JSON; without `NoDecode` errors would not name the field."""


def _url_of(*schemes: str) -> AfterValidator:
    def check(url: SecretStr) -> SecretStr:
        parts = urlsplit(url.get_secret_value())
        if parts.scheme not in schemes or not parts.netloc:
            raise ValueError(f"a URL that begins with {' or '.join(f'{s}://' for s in schemes)}")
        return url

    return AfterValidator(check)


def _with_one_port(url: SecretStr) -> SecretStr:
    try:
        urlsplit(url.get_secret_value()).port  # noqa: B018 - reading it is the check
    except ValueError as error:
        raise ValueError("a URL whose port is a number up to 65535") from error
    return url


# The URLs hold passwords: as secrets they stay out of every message and log.
AmqpUrl = Annotated[SecretStr, _url_of("amqp", "amqps"), AfterValidator(_with_one_port)]
MongoUrl = Annotated[SecretStr, _url_of("mongodb", "mongodb+srv")]


def _usable(address: str) -> str:
    parse_address(address)
    return address


MetricsAddress = Annotated[str, AfterValidator(_usable)]
"""Where a process is scraped: `HOST:PORT`, or `off`."""


class ProcessSettings(BaseSettings):
    """The settings that every process has. Each is read from `MODELYARD_` and its name."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="ignore",
        validate_by_name=True,
        validate_by_alias=True,
    )

    amqp_url: AmqpUrl = Field(
        default=SecretStr("amqp://guest:guest@127.0.0.1:5672"),
        description="RabbitMQ: amqp://USER:PASSWORD@HOST:PORT/VHOST, or amqps:// with TLS.",
    )
    log_level: LogLevel = Field(default="info", description="debug, info, warning or error.")
    log_format: LogFormat = Field(
        default="auto", description="json, text, or auto: text on a terminal."
    )


class StoreSettings(ProcessSettings):
    """The settings of a process that uses MongoDB."""

    mongo_url: MongoUrl = Field(
        default=SecretStr("mongodb://127.0.0.1:27017/modelyard"),
        description="MongoDB, a replica set: mongodb://HOST:PORT,.../DATABASE?replicaSet=NAME, or "
        "mongodb+srv://.",
    )


S = TypeVar("S", bound=ProcessSettings)


def read_settings(kind: type[S]) -> S:
    """Read the environment; raises `WrongSettingsError`.

    The message never repeats a value: it may be a secret.
    """
    try:
        return kind()
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        field = _field_at(kind, str(first["loc"][0]))
        reason = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        if first["type"] != "value_error":  # those messages are Modelyard's own
            reason = _expected(kind, field) or reason
        name = variable(kind, field)
        raise WrongSettingsError(f"{name} is wrong: expected {reason.rstrip('.')}.") from error


def start_process(prog: str, purpose: str, kind: type[S], argv: Sequence[str] | None) -> S:
    """Read a process's command line and settings; exits for `--help`, `--version` and mistakes."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=f"{purpose} Environment variables configure it:",
        epilog=describe(kind),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.parse_args(argv)
    try:
        return read_settings(kind)
    except WrongSettingsError as error:
        give_up(prog, str(error), code=EXIT_WRONG_SETTINGS)


def give_up(prog: str, sentence: str, *, code: int = 1) -> NoReturn:
    """Exit with one sentence on stderr and no traceback."""
    sys.stderr.write(f"{prog}: {sentence}\n")
    raise SystemExit(code)


def describe(kind: type[ProcessSettings]) -> str:
    """Return every variable with its meaning, its range and its default, for `--help`."""
    schemas = kind.model_json_schema(by_alias=False)["properties"]
    lines: list[str] = []
    for name, field in kind.model_fields.items():
        notes = [_range(schemas[name])]
        if not field.default_factory:
            notes.append(f"default: {_shown(field.default)}")
        joined = "; ".join(filter(None, notes))
        end = f" ({joined})" if joined else ""
        lines.append(f"  {variable(kind, name)}\n      {field.description}{end}")
    return "\n".join(lines)


def variable(kind: type[ProcessSettings], field: str) -> str:
    """Return the environment variable of a field."""
    alias = kind.model_fields[field].validation_alias
    return str(alias or f"{PREFIX}{field.upper()}")


def _field_at(kind: type[ProcessSettings], place: str) -> str:
    """Return the field at an error's location, which is the field's name or its alias."""
    by_alias = {str(one.validation_alias): name for name, one in kind.model_fields.items()}
    return by_alias.get(place, place)


def _expected(kind: type[ProcessSettings], field: str) -> str | None:
    metadata = kind.model_fields[field].metadata
    return next((one.words for one in metadata if isinstance(one, Expects)), None)


def _range(schema: Mapping[str, float]) -> str:
    least, most = schema.get("minimum"), schema.get("maximum")
    if most is None:
        return ""
    above = schema.get("exclusiveMinimum")
    return f"above {above:g} to {most:.0f}" if above is not None else f"{least:g} to {most:.0f}"


def _shown(default: object) -> str:
    if isinstance(default, SecretStr):
        return default.get_secret_value()
    return json.dumps(default) if isinstance(default, tuple | bool) else str(default)
