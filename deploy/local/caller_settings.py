"""Settings of the services that the caller of a command has in its environment."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from deploy.local.errors import StackError
from deploy.local.layout import OWN_ADDRESSES

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "MODELYARD_"
_CONFIG = "MODELYARD_CONFIG"
_AUTH = "MODELYARD_AUTH"
_OF_CLIENTS = frozenset({"MODELYARD_URL", "MODELYARD_API_KEY", "MODELYARD_API_KEY_FILE"})
_OF_THE_STACK = frozenset(
    {
        OWN_ADDRESSES,
        "MODELYARD_AMQP_URL",
        "MODELYARD_AMQP_URL_FILE",
        "MODELYARD_MONGO_URL",
        "MODELYARD_MONGO_URL_FILE",
        "MODELYARD_BASE_IMAGE",
        "MODELYARD_LOCAL_DAEMON",
    }
)


@dataclass(frozen=True)
class CallerSettings:
    """The `MODELYARD_*` variables for the services; the stack's own defaults come after them."""

    variables: Mapping[str, str] = field(default_factory=dict)
    in_file: Mapping[str, object] = field(default_factory=dict)
    """What the TOML file of `MODELYARD_CONFIG` sets, by variable."""

    @classmethod
    def by(cls, environment: Mapping[str, str]) -> Self:
        """Read them from an environment; raises `StackError` if the TOML file can't be read."""
        mine = {
            name: value
            for name, value in environment.items()
            if name.startswith(PREFIX) and name not in _OF_CLIENTS | _OF_THE_STACK
        }
        if not mine.get(_CONFIG):
            return cls(mine)
        # The services run in another folder.
        file = Path(mine[_CONFIG]).expanduser().absolute()
        return cls({**mine, _CONFIG: str(file)}, _settings_in(file))

    @property
    def with_keys(self) -> bool:
        """Whether the gateway is to require API keys."""
        return self.get(_AUTH) == "keys"

    def get(self, variable: str) -> str | None:
        """Return a setting; None if the caller has not made it."""
        if variable in self.variables:
            return self.variables[variable]
        found = self.in_file.get(variable)
        return None if found is None else str(found)

    def with_(self, **variables: str) -> Self:
        """Return these settings with some changed."""
        return replace(self, variables={**self.variables, **variables})

    def over(self, defaults: Mapping[str, str]) -> dict[str, str]:
        """Return these settings, and the defaults that the caller has not set."""
        missing = {name: value for name, value in defaults.items() if name not in self.in_file}
        return {**missing, **self.variables}


def _settings_in(file: Path) -> dict[str, object]:
    try:
        with file.open("rb") as opened:
            content = tomllib.load(opened)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise StackError(f"{_CONFIG} names {file}, which can't be read: {error}") from None
    return {f"{PREFIX}{key.upper()}": value for key, value in content.items()}
