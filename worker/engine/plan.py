"""What a container engine is asked for: the plan of one container, and facts of its image."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from worker.engine.labels import ContainerLabels


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """The properties of an image that matter to a container's plan."""

    volumes: tuple[str, ...] = ()
    """The folders that it declares as `VOLUME`; Docker mounts an anonymous volume on each."""
    env: frozenset[str] = frozenset()
    """Names of the environment variables that it sets."""


@dataclass(frozen=True, slots=True)
class DatasetMount:
    """The mount of the dataset; always read-only."""

    kind: Literal["bind", "volume"]
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class ContainerPlan:
    """Everything about a container that differs between containers.

    There is no field for privileges, capabilities, devices, namespaces or other bind mounts, so no
    request and no model can ask for them. `docker.config` adds what is the same for all.
    """

    name: str
    labels: ContainerLabels
    image: str
    entrypoint: tuple[str, ...] | None
    """None: the image's own; empty: none at all."""
    command: tuple[str, ...] | None
    env: Mapping[str, str]
    user: str
    port: int | None
    publish: bool
    network: str
    read_only: bool
    tmpfs_bytes: int
    kept_folder: str | None
    """The folder of the result file, mounted as an anonymous volume.

    The file must outlive the process, and a tmpfs does not.
    """
    memory: int
    shm: int
    cpus: float
    devices: tuple[str, ...]
    """The devices that the container sees, by uuid."""
    pids_limit: int
    stop_grace_s: float
    dataset: DatasetMount | None
