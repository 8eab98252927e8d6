"""Settings that all three processes share: variables, errors and help.

Each process has a `settings.py` with a class derived from one of these. Only that class reads the
environment and the files that it names, and only `__main__` builds it.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, NoReturn, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from modelyard import __version__
from modelyard.contract.validation import UNPARSED
from modelyard.process.addresses import parse_address
from modelyard.process.config.sources import (
    CONFIG_VARIABLE,
    IN_FILE,
    PREFIX,
    ConfigFile,
    Environment,
    Origin,
    OriginKind,
    SecretFiles,
    WrongSettingsError,
    config_file,
    is_secret,
    variable,
)
from modelyard.process.logging import LogFormat, LogLevel
from modelyard.process.service_manager import ServiceManager

EXIT_WRONG_SETTINGS = 2


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
        try:
            parts = urlsplit(url.get_secret_value())
        except ValueError:  # its message may hold the password
            raise ValueError(
                "a URL with a host that can be one, and with special characters of user and "
                "password as %XX"
            ) from None
        if parts.scheme not in schemes or not parts.netloc:
            raise ValueError(f"a URL that begins with {' or '.join(f'{s}://' for s in schemes)}")
        return url

    return AfterValidator(check)


def _with_one_port(url: SecretStr) -> SecretStr:
    try:
        urlsplit(url.get_secret_value()).port  # noqa: B018 - reading it is the check
    except ValueError:  # its message holds the port, which may be a part of the password
        raise ValueError("a URL whose port is a number up to 65535") from None
    return url


# The URLs hold passwords: as secrets they stay out of every message and log.
AmqpUrl = Annotated[SecretStr, _url_of("amqp", "amqps"), AfterValidator(_with_one_port)]
MongoUrl = Annotated[SecretStr, _url_of("mongodb", "mongodb+srv")]
HealthPath = Annotated[
    Annotated[str, StringConstraints(pattern=r"^/\S+$")] | None,
    Field(
        default=None,
        description="File that this process touches every few seconds while it works, for health "
        "checks (python -m modelyard.process.health.check); none if not set.",
    ),
    Expects("an absolute path, such as /run/modelyard/health"),
]


def _usable(address: str) -> str:
    parse_address(address)
    return address


MetricsAddress = Annotated[
    str,
    AfterValidator(_usable),
    Field(
        description="HOST:PORT at which /metrics is scraped, without authentication; off for none."
    ),
]
"""Where a process is scraped: `HOST:PORT`, or `off`."""


class ConfiguredSettings(BaseSettings):
    """Settings from the environment, else from the TOML file of `MODELYARD_CONFIG`, else defaults.

    A field's variable is `MODELYARD_` and its name, and its key in the file is its name.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="ignore",
        validate_by_name=True,
        validate_by_alias=True,
    )
    foreign_keys: ClassVar[bool] = False
    """Whether the file may have keys of other programs, which are ignored."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources, of which the first one that has a value wins."""
        del env_settings, dotenv_settings, file_secret_settings
        return init_settings, Environment(settings_cls), *cls._files(settings_cls)

    @classmethod
    def _files(cls, kind: type[BaseSettings]) -> tuple[SecretFiles, ConfigFile]:
        secret_files = SecretFiles(kind, os.environ)
        overridden = {_field_at(cls, place) for place in Environment(kind)()}
        file = ConfigFile(
            kind,
            config_file(os.environ),
            overridden=overridden | set(secret_files.origins),
            foreign_keys=cls.foreign_keys,
        )
        return secret_files, file

    @classmethod
    def origins(cls) -> dict[str, Origin]:
        """Return where each field's value comes from; raises `WrongSettingsError`."""
        secret_files, file = cls._files(cls)
        found = dict.fromkeys(cls.model_fields, Origin())
        found |= file.origins | secret_files.origins
        for place in Environment(cls)():
            field = _field_at(cls, place)
            if field in found:
                found[field] = Origin(OriginKind.ENVIRONMENT, variable(cls, field))
        return found


class ProcessSettings(ConfiguredSettings):
    """The settings that every process has."""

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


class ServiceManagerSettings(BaseSettings):
    """What systemd sets for the processes that it starts; empty for all others."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    notify_socket: str | None = Field(None, validation_alias="NOTIFY_SOCKET")
    watchdog_usec: int | None = Field(None, validation_alias="WATCHDOG_USEC", gt=0)
    watchdog_pid: int | None = Field(None, validation_alias="WATCHDOG_PID")

    def manager(self) -> ServiceManager:
        """Return the manager; its watchdog counts only if it is meant for this very process."""
        meant = self.watchdog_pid in (None, os.getpid())
        watchdog_s = self.watchdog_usec / 1e6 if self.watchdog_usec and meant else None
        return ServiceManager(self.notify_socket or None, watchdog_s=watchdog_s)


S = TypeVar("S", bound=ConfiguredSettings)


def read_settings(kind: type[S]) -> S:
    """Read the environment and the files that it names; raises `WrongSettingsError`.

    The message is one sentence. It never repeats a value, which may be a secret.
    """
    try:
        return kind()
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        field = _field_at(kind, str(first["loc"][0]))
        reason = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        reason = reason.removeprefix("must be ").partition(UNPARSED)[0]
        if first["type"] != "value_error":  # those messages are Modelyard's own
            reason = _expected(kind, field) or reason
        origin = kind.origins()[field]
        name = variable(kind, field) if origin.kind is OriginKind.DEFAULT else str(origin)
        raise WrongSettingsError(f"{name} is wrong: expected {reason.rstrip('.')}.") from error


def environment_names() -> list[str]:
    """Return the variables of the environment that begin as Modelyard's do."""
    return sorted(name for name in os.environ if name.startswith(PREFIX))


def start_process(prog: str, purpose: str, kind: type[S], argv: Sequence[str] | None) -> S:
    """Read a process's command line and settings; exits for `--help`, `--version` and mistakes."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=f"{purpose}\n\nEnvironment variables configure it, and the TOML file that "
        f"{CONFIG_VARIABLE} names: there a key\nis the variable's name without {PREFIX}, in lower "
        "case. A variable wins over the file.",
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


def describe(kind: type[ConfiguredSettings]) -> str:
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
        if is_secret(field):
            lines.append(f"  {variable(kind, name)}{IN_FILE}\n      A file that holds it instead.")
    return "\n".join(lines)


def _field_at(kind: type[ConfiguredSettings], place: str) -> str:
    """Return the field at an error's location, which is the field's name or its alias."""
    by_alias = {str(one.validation_alias): name for name, one in kind.model_fields.items()}
    return by_alias.get(place, place)


def _expected(kind: type[ConfiguredSettings], field: str) -> str | None:
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
