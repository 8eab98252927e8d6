"""The folders of a local stack, and the servers that the user provides."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from deploy.local.errors import StackError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

ROOT = Path(__file__).resolve().parents[2]
OWN_ADDRESSES = "MODELYARD_LOCAL_STACK"
"""The variable of `stack.env` that lists which of its addresses are of the stack's own servers."""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,15}")
"""Without a dash, so that the names of containers of two stacks can't be the same."""


@dataclass(frozen=True)
class Layout:
    """The folders of one stack.

    `root` is the checkout; `data` holds RabbitMQ's and MongoDB's files, `docker` the images and
    containers of the private engine, `datasets` what workers may mount. The data of a
    `transient` stack is removed when it stops. `name` is empty for the only or first stack.
    """

    root: Path
    data: Path
    docker: Path
    logs: Path
    datasets: Path
    transient: bool = False
    name: str = ""

    @classmethod
    def background(cls, root: Path = ROOT, name: str = "") -> Self:
        """Lay out the stack of `make up`, or another one beside it, which has a name.

        Raises `StackError` if the name can't be one.
        """
        if name and not _NAME.fullmatch(name):
            raise StackError(
                f"{name!r} can't be the name of a stack: up to 16 lower-case letters, digits and "
                '"_", the first a letter.'
            )
        home = root / "var" / "stacks" / name if name else root / "var"
        folders = (home / "data", home / "docker", home / "log", home / "datasets")
        return cls(root, *folders, name=name)

    @classmethod
    def all_in_background(cls, root: Path = ROOT) -> list[Self]:
        """Lay out the stack of `make up` and all that have ever been beside it."""
        named = (root / "var" / "stacks").glob("*/")
        return [cls.background(root), *(cls.background(root, one.name) for one in sorted(named))]

    @property
    def home(self) -> Path:
        """The folder of the stack's record, of its lock and of `stack.env`."""
        return self.data.parent

    @property
    def tag(self) -> str:
        """A short name that no other stack of this machine has."""
        digest = hashlib.sha256(str(self.data.resolve()).encode()).hexdigest()[:8]
        return self.name or f"s{digest}"

    @classmethod
    def private(cls, root: Path = ROOT) -> Self:
        """Lay out a stack that lives as long as one command, with the same images and datasets."""
        var = root / "var"
        logs = var / "log" / "demo"
        return cls(root, var / "demo", var / "docker", logs, var / "datasets", transient=True)


@dataclass(frozen=True)
class Given:
    """Addresses of running servers that the user provides; None: the stack starts its own."""

    amqp_url: str | None = None
    mongo_url: str | None = None
    docker_host: str | None = None

    @classmethod
    def by(cls, environment: Mapping[str, str]) -> Self:
        """Read them from environment variables; an empty one counts as not set.

        Addresses that come from the `stack.env` of a local stack, running or not, don't count: its
        servers are no others' to use, and end with it.
        """
        return cls(
            amqp_url=_address(environment, "MODELYARD_AMQP_URL"),
            mongo_url=_address(environment, "MODELYARD_MONGO_URL"),
            docker_host=environment.get("DOCKER_HOST") or None,
        ).without(environment.get(OWN_ADDRESSES, "").split())

    def without(self, addresses: Collection[str]) -> Self:
        """Return these addresses except some."""
        return replace(
            self,
            amqp_url=None if self.amqp_url in addresses else self.amqp_url,
            mongo_url=None if self.mongo_url in addresses else self.mongo_url,
            docker_host=None if self.docker_host in addresses else self.docker_host,
        )


@dataclass(frozen=True)
class Endpoints:
    """The addresses of a running stack."""

    url: str
    amqp_url: str
    mongo_url: str
    docker_host: str

    def variables(self) -> dict[str, str]:
        """Return them as the environment variables that clients and tests read."""
        return {
            "MODELYARD_URL": self.url,
            "MODELYARD_AMQP_URL": self.amqp_url,
            "MODELYARD_MONGO_URL": self.mongo_url,
            "DOCKER_HOST": self.docker_host,
        }


def _address(environment: Mapping[str, str], variable: str) -> str | None:
    """Return the address in a variable, or in the file that the variable with `_FILE` names."""
    file = environment.get(f"{variable}_FILE")
    if environment.get(variable) or not file:
        return environment.get(variable) or None
    try:
        return Path(file).expanduser().read_text().strip() or None
    except OSError as error:
        raise StackError(f"{variable}_FILE names {file}, which can't be read: {error}") from None
