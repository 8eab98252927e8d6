"""The worker's settings: the only place where it reads the environment."""

import os
import platform
import tempfile
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from modelyard.contract.catalog import AbsolutePath, Size
from modelyard.contract.ids import Id
from modelyard.contract.messages import Labels
from modelyard.contract.topology import CONTROL_SUFFIX
from modelyard.settings import ProcessSettings
from worker.container_plan import PlanRules
from worker.references import AllowList

DockerUrl = Annotated[str, StringConstraints(pattern=r"^(unix:///|tcp://|http://|https://)\S+$")]
NetworkName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$")]
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

    host_id: Id = Field(
        default_factory=platform.node, description="This host's id; the machine's name if not set."
    )
    docker_url: DockerUrl = Field(
        "unix:///var/run/docker.sock",
        validation_alias="DOCKER_HOST",
        description="The Docker Engine of this host.",
    )
    worker_slots: int = Field(4, ge=0, le=10_000, description="Jobs that this host takes at once.")
    worker_labels: Labels = Field(
        default_factory=dict, description="Labels that models may ask for, as a JSON object."
    )
    worker_dataset_roots: tuple[AbsolutePath, ...] = Field(
        (), description="Folders that datasets may lie in, as a JSON list; none: volumes only."
    )
    worker_allowed_images: tuple[str, ...] = Field(
        ("*",), description='Images that may run, as a JSON list such as ["registry/repo/*"].'
    )
    worker_reach: Reach = Field(
        Reach.PUBLISHED, description="How containers are reached: published or network."
    )
    worker_network: NetworkName = Field("modelyard", description="The Docker network of all jobs.")
    worker_tmpfs_size: Size = Field(256 << 20, description="Size of /tmp, such as 256m.")
    worker_pids_limit: int = Field(
        256, ge=8, le=1 << 20, description="Processes and threads that a container may have."
    )

    worker_runtime_dir: AbsolutePath = Field(
        default_factory=lambda: f"{tempfile.gettempdir()}/modelyard-{os.getuid()}",
        description="Folder of small files that are of no use after a reboot; only this user may "
        "write to it.",
    )

    @field_validator("host_id")
    @classmethod
    def _no_other_routing_key(cls, host_id: str) -> str:
        if host_id.endswith(CONTROL_SUFFIX):
            raise ValueError(f"an id that does not end with {CONTROL_SUFFIX}")
        return host_id

    @field_validator("worker_allowed_images")
    @classmethod
    def _patterns_can_match(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        AllowList(patterns)
        return patterns

    @field_validator("worker_network")
    @classmethod
    def _network_is_of_our_making(cls, name: str) -> str:
        if name in _ENGINES_OWN:
            raise ValueError("it must be a network of its own, on which containers are kept apart")
        return name

    @model_validator(mode="after")
    def _roots_are_not_everything(self) -> Self:
        if any(os.path.normpath(root) == "/" for root in self.worker_dataset_roots):
            raise ValueError("a dataset root can't be the whole file system")
        return self

    def plan_rules(self) -> PlanRules:
        """Return what the host decides for all of its containers."""
        return PlanRules(
            host_id=self.host_id,
            network=self.worker_network,
            publish=self.worker_reach is Reach.PUBLISHED,
            tmpfs_bytes=self.worker_tmpfs_size,
            pids_limit=self.worker_pids_limit,
        )
