"""The worker's settings: the only place where it reads the environment."""

import os
import platform
import tempfile
from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints, field_validator
from pydantic_settings import NoDecode

from modelyard.contract.catalog.values import AbsolutePath, Size
from modelyard.contract.ids import Id
from modelyard.contract.messages import Labels
from modelyard.process.settings import JSON, Expects, ProcessSettings
from worker.engine.image_references import AllowList
from worker.engine.plan import PlanRules

HostId = Annotated[
    Id,
    Expects('1 to 128 letters, digits, "_", "." or "-", the first a letter or digit'),
]
DockerUrl = Annotated[
    str,
    StringConstraints(pattern=r"^(unix:///|tcp://|http://|https://)\S+$"),
    Expects("a URL that begins with unix:///, tcp://, http:// or https://"),
]
HostLabels = Annotated[Labels, NoDecode, JSON, Expects('JSON, such as {"gpu": "a100"}')]
Folders = Annotated[
    tuple[AbsolutePath, ...], NoDecode, JSON, Expects('a JSON list, such as ["/srv/datasets"]')
]
Folder = Annotated[AbsolutePath, Expects("an absolute path, such as /run/modelyard")]
ImagePatterns = Annotated[
    tuple[str, ...],
    NoDecode,
    JSON,
    Expects('a JSON list, such as ["registry.example/team/*"]'),
]
VolumePatterns = Annotated[
    tuple[Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9*][a-zA-Z0-9_.*-]{0,127}$")], ...],
    NoDecode,
    JSON,
    Expects('a JSON list of names in which * stands for any letters, such as ["ds-*"]'),
]
NetworkName = Annotated[
    str,
    StringConstraints(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$"),
    Expects('1 to 64 letters, digits, "_", "." or "-", the first a letter or digit'),
]
_ENGINES_OWN = frozenset({"host", "none", "bridge", "default"})
"""Names that mean no network of ours to Docker; on none of them are containers kept apart."""


class Reach(StrEnum):
    """How the worker reaches a container's port."""

    PUBLISHED = "published"
    """Through a port that is published on 127.0.0.1."""
    NETWORK = "network"
    """By its address on the job network; only from the engine's own network namespace."""


class WorkerSettings(ProcessSettings):
    """Each field is `MODELYARD_` and its name in the environment, but for `DOCKER_HOST`."""

    host_id: HostId = Field(
        default_factory=platform.node,
        description="This host's id, no other host's: 1 to 128 letters, digits, _, . or -; the "
        "machine's name if not set. A second worker of this id waits until the first is gone.",
    )
    docker_url: DockerUrl = Field(
        "unix:///var/run/docker.sock",
        validation_alias="DOCKER_HOST",
        description="The Docker Engine of this host: unix:///PATH, tcp://HOST:PORT, http:// or "
        "https://.",
    )
    worker_slots: int = Field(4, ge=0, le=10_000, description="Jobs that this host takes at once.")
    worker_labels: HostLabels = Field(
        default_factory=dict,
        description='Labels that models may ask for, as JSON such as {"gpu": "a100"}; up to 64.',
    )
    worker_dataset_roots: Folders = Field(
        (),
        description='Folders that datasets may lie in, as a JSON list such as ["/srv/datasets"]; '
        "none if not set.",
    )
    worker_allowed_images: ImagePatterns = Field(
        (),
        description='Images that may run, as a JSON list such as ["registry.example/team/*"]; none '
        'if not set, and ["*"] is any image of anybody.',
    )
    worker_allowed_volumes: VolumePatterns = Field(
        (),
        description="Docker volumes that may be mounted as datasets, as a JSON list such as "
        '["ds-*"]; none if not set.',
    )
    worker_reach: Reach = Field(
        Reach.PUBLISHED,
        description="How containers are reached: published (by a port on 127.0.0.1) or network (by "
        "their address on the job network).",
    )
    worker_network: NetworkName = Field("modelyard", description="The Docker network of all jobs.")
    worker_tmpfs_size: Size = Field(
        256 << 20,
        description="Size of /tmp in a container, in memory: bytes, or such as 256m or 1g.",
    )
    worker_disk: Size = Field(
        10 << 30,
        description="What a container may write to the disk if its model does not say: bytes, or "
        "such as 10g.",
    )
    worker_max_disk: Size = Field(
        100 << 30, description="The most that a model may ask for as its resources.disk."
    )
    worker_pids_limit: int = Field(
        256, ge=8, le=1 << 20, description="Processes and threads that a container may have."
    )

    worker_runtime_dir: Folder = Field(
        default_factory=lambda: f"{tempfile.gettempdir()}/modelyard-{os.getuid()}",
        description="Folder of small files that are of no use after a reboot; only this user may "
        "write to it (default: modelyard-UID in the folder for temporary files).",
    )

    @field_validator("worker_allowed_images")
    @classmethod
    def _patterns_can_match(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        try:
            AllowList(patterns)
        except ValueError as error:
            form = "registry/repository, registry/folder/*, registry/* or *, without tags"
            raise ValueError(f"patterns of the form {form}") from error
        return patterns

    @field_validator("worker_network")
    @classmethod
    def _network_is_of_our_making(cls, name: str) -> str:
        if name in _ENGINES_OWN:
            raise ValueError("a network of its own, on which containers are kept apart")
        return name

    @field_validator("worker_dataset_roots")
    @classmethod
    def _roots_are_not_everything(cls, roots: tuple[str, ...]) -> tuple[str, ...]:
        if any(os.path.normpath(root) == "/" for root in roots):
            raise ValueError("folders, none of them the whole file system")
        return roots

    @property
    def cautions(self) -> tuple[str, ...]:
        """What whoever runs this worker should know about its settings: one sentence each."""
        if "*" in self.worker_allowed_images:
            return ('MODELYARD_WORKER_ALLOWED_IMAGES holds "*": any image of anybody may run.',)
        if not self.worker_allowed_images:
            return ("MODELYARD_WORKER_ALLOWED_IMAGES is not set: no image may run here.",)
        return ()

    def plan_rules(self) -> PlanRules:
        """Return what the host decides for all of its containers."""
        return PlanRules(
            host_id=self.host_id,
            network=self.worker_network,
            publish=self.worker_reach is Reach.PUBLISHED,
            tmpfs_bytes=self.worker_tmpfs_size,
            pids_limit=self.worker_pids_limit,
            disk_bytes=self.worker_disk,
            max_disk_bytes=self.worker_max_disk,
        )
