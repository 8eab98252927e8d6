"""The folders of a local stack, and the servers that the user provides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Layout:
    """The folders of one stack.

    `root` is the checkout; `data` holds RabbitMQ's and MongoDB's files, `docker` the images and
    containers of the private engine, `datasets` what workers may mount. The data of a
    `transient` stack is removed when it stops.
    """

    root: Path
    data: Path
    docker: Path
    logs: Path
    datasets: Path
    transient: bool = False

    @classmethod
    def background(cls, root: Path = ROOT) -> Self:
        """Lay out the stack of `make up`."""
        var = root / "var"
        return cls(root, var / "data", var / "docker", var / "log", var / "datasets")

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
        """Read them from environment variables; an empty one counts as not set."""
        return cls(
            amqp_url=environment.get("MODELYARD_AMQP_URL") or None,
            mongo_url=environment.get("MODELYARD_MONGO_URL") or None,
            docker_host=environment.get("DOCKER_HOST") or None,
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
