"""The files that settings are read from: one TOML file for all of them, and one for each secret."""

import difflib
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    TomlConfigSettingsSource,
)

PREFIX = "MODELYARD_"
CONFIG_VARIABLE = f"{PREFIX}CONFIG"
"""Names the TOML file of a process."""
IN_FILE = "_FILE"
"""The variable of a secret plus this names a file that holds the secret."""
MAX_CONFIG_BYTES = 1 << 20
MAX_SECRET_BYTES = 64 << 10

Kind = type[BaseSettings]


class WrongSettingsError(Exception):
    """A setting can't be used; the message names where it is set, and never repeats its value."""


class OriginKind(StrEnum):
    """What sets a value; the environment wins over the file, and the file over the default."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the value of a setting comes from."""

    kind: OriginKind = OriginKind.DEFAULT
    name: str | None = None
    """The environment variable, or the key in the TOML file."""
    config_file: str | None = None
    """The TOML file that has the key."""
    secret_file: str | None = None
    """The file that holds the secret, if variable or key only name it."""

    def __str__(self) -> str:
        """Return the place as an error message names it."""
        place = f"{self.config_file}: {self.name}" if self.config_file else (self.name or "")
        return f"{place} ({self.secret_file})" if self.secret_file else place


def variable(kind: Kind, field: str) -> str:
    """Return the environment variable of a field."""
    alias = kind.model_fields[field].validation_alias
    return str(alias or f"{PREFIX}{field.upper()}")


def key_of(kind: Kind, field: str) -> str:
    """Return the key of a field in a TOML file: its variable without the prefix, in lower case."""
    return variable(kind, field).removeprefix(PREFIX).lower()


def is_secret(field: FieldInfo) -> bool:
    """Tell whether a field holds a secret, so that a file of its own may have it."""
    return SecretStr in (field.annotation, *get_args(field.annotation))


def secrets_of(kind: Kind) -> list[str]:
    """Return the fields that hold secrets."""
    return [name for name, field in kind.model_fields.items() if is_secret(field)]


def config_file(environ: Mapping[str, str]) -> Path | None:
    """Return the TOML file that `MODELYARD_CONFIG` names."""
    name = environ.get(CONFIG_VARIABLE)
    return Path(name).expanduser() if name else None


class Environment(EnvSettingsSource):
    """The environment, with one variable for each setting: none by the name beside an alias.

    Otherwise the two could be set to different values, and a file would win over one of them.
    """

    def __call__(self) -> dict[str, Any]:
        """Return the values by alias, or by field where there is none."""
        fields = self.settings_cls.model_fields
        return {
            place: value
            for place, value in super().__call__().items()
            if place not in fields or fields[place].validation_alias is None
        }


class SecretFiles(PydanticBaseSettingsSource):
    """Secrets in files that environment variables name, such as `MODELYARD_AMQP_URL_FILE`.

    Container engines and systemd hand secrets over as files: unlike variables these are in no
    listing of a container's configuration and are not inherited by processes.
    """

    def __init__(self, kind: Kind, environ: Mapping[str, str]) -> None:
        """Read the files; raises `WrongSettingsError`."""
        super().__init__(kind)
        self.origins: dict[str, Origin] = {}
        self._values: dict[str, str] = {}
        for field in secrets_of(kind):
            name = variable(kind, field)
            file = environ.get(name + IN_FILE)
            if not file:
                continue
            if name in environ:
                raise WrongSettingsError(f"{name} and {name}{IN_FILE} are both set: give only one.")
            origin = Origin(OriginKind.ENVIRONMENT, name + IN_FILE, secret_file=file)
            self._values[field] = _secret(Path(file).expanduser(), origin)
            self.origins[field] = origin

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return the secret of one field."""
        del field
        return self._values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the secrets by field."""
        return dict(self._values)


class ConfigFile(TomlConfigSettingsSource):
    """The settings in a TOML file. A secret may be in a file of its own there too."""

    def __init__(
        self,
        kind: Kind,
        path: Path | None,
        *,
        overridden: Collection[str] = (),
        foreign_keys: bool = False,
    ) -> None:
        """Read the file, if one is named; raises `WrongSettingsError`.

        `overridden` are the fields that the environment sets: files of their secrets are not read,
        because a service that gets a secret from systemd may not be able to read root's file.
        A key that is no setting is an error, except with `foreign_keys`: then the file is another
        program's too.
        """
        self._kind = kind
        self._overridden = overridden
        self._foreign_keys = foreign_keys
        self.origins: dict[str, Origin] = {}
        if path is not None and not path.is_file():
            reason = "is not a file" if path.exists() else "does not exist"
            raise WrongSettingsError(f"{path} {reason}; {CONFIG_VARIABLE} names it.")
        super().__init__(kind, path)

    def _read_file(self, file_path: object) -> dict[str, Any]:
        path = Path(str(file_path))
        content = _content(path, MAX_CONFIG_BYTES, str(path))
        try:
            given = tomllib.loads(content)
        except tomllib.TOMLDecodeError as error:
            raise WrongSettingsError(f"{path} is not valid TOML: {error}.") from error
        known = {key_of(self._kind, field): field for field in self._kind.model_fields}
        files = {
            key_of(self._kind, field) + IN_FILE.lower(): field for field in secrets_of(self._kind)
        }
        if not self._foreign_keys:
            _refuse_unknown(path, given, [*known, *files])
        read: dict[str, Any] = {}
        for key, value in given.items():
            field = known.get(key) or files.get(key)
            if field is None:
                continue
            if field in self.origins:
                both = f"{key.removesuffix(IN_FILE.lower())} and its file are both set"
                raise WrongSettingsError(f"{path}: {both}: give only one.")
            origin = Origin(OriginKind.FILE, key, config_file=str(path))
            if key in files:
                origin = _named_secret(path, key, value)
                if field not in self._overridden:
                    read[field] = _secret(Path(str(origin.secret_file)), origin)
            else:
                read[field] = value
            self.origins[field] = origin
        return read


def _named_secret(config: Path, key: str, named: object) -> Origin:
    """Return the file of a secret that a key of the TOML file names, from the latter's folder."""
    if not isinstance(named, str) or not named:
        raise WrongSettingsError(f"{config}: {key} is wrong: expected the path of a file.")
    file = config.parent / Path(named).expanduser()
    return Origin(OriginKind.FILE, key, config_file=str(config), secret_file=str(file))


def _refuse_unknown(path: Path, given: Mapping[str, object], known: list[str]) -> None:
    unknown = [key for key in given if key not in known]
    if not unknown:
        return
    said = []
    for key in unknown:
        near = difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.8)
        said.append(f"{key} (perhaps {near[0]}?)" if near else key)
    raise WrongSettingsError(f"{path} has keys that are no settings: {', '.join(said)}.")


def _secret(path: Path, origin: Origin) -> str:
    """Return what a file of a secret holds, without the end of its line."""
    value = _content(path, MAX_SECRET_BYTES, str(origin)).strip("\r\n")
    if not value:
        raise WrongSettingsError(f"{origin} is wrong: the file is empty.")
    return value


def _content(path: Path, most_bytes: int, place: str) -> str:
    try:
        with path.open("rb") as opened:
            content = opened.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise WrongSettingsError(f"{place} is larger than {most_bytes >> 10} KiB.")
        return content.decode("utf-8")
    except OSError as error:
        raise WrongSettingsError(f"{place} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise WrongSettingsError(f"{place} is not UTF-8 text.") from error
