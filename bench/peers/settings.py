"""What workers and clients of the peers need to know, from their environment."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self

_VARIABLE = "BENCH_{}"
_SEPARATOR = ","


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """Addresses of the servers, which are those that Modelyard uses in the same run."""

    amqp_url: str
    mongo_url: str
    model_urls: str
    """Where inferences are POSTed, separated by commas; the tasks take turns."""
    body: str
    """The JSON that each task sends."""

    @classmethod
    def by(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read them."""
        return cls(**{name: environment[_VARIABLE.format(name.upper())] for name in cls.__slots__})

    def variables(self) -> dict[str, str]:
        """Return them as environment variables."""
        return {_VARIABLE.format(name.upper()): value for name, value in asdict(self).items()}

    @property
    def models(self) -> list[str]:
        """The addresses of `model_urls`."""
        return self.model_urls.split(_SEPARATOR)
