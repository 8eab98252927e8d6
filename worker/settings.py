"""The worker's settings: the only place where it reads the environment."""

import os
import platform
import tempfile
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints, field_validator
from pydantic_settings import NoDecode

from modelyard.contract.capacity.offers import MAX_DEVICES, Device, HostCapacity
from modelyard.contract.catalog.values import AbsolutePath, Size
from modelyard.contract.ids import Id
from modelyard.contract.messages import EngineFacts, Labels
from modelyard.process.settings import (
    JSON,
    Expects,
    HealthPath,
    MetricsAddress,
    ProcessSettings,
)
from worker.containers.given_back import UnloadRules
from worker.containers.planning import PlanRules
from worker.engine.image_references import AllowList

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
Cpus = Annotated[float, Field(ge=0.01, le=100_000, allow_inf_nan=False)]


class DeclaredDevice(Device):
    """A device as an operator writes it: its memory may be a text such as `24g`."""

    model_config = ConfigDict(extra="forbid")

    memory: Annotated[Size, Field(gt=0)]


Devices = Annotated[
    tuple[DeclaredDevice, ...] | None,
    NoDecode,
    JSON,
    Expects('a JSON list, such as [{"uuid": "GPU-1", "model": "A100", "memory": "40g"}]'),
]
NetworkName = Annotated[
    str,
    StringConstraints(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$"),
    Expects('1 to 64 letters, digits, "_", "." or "-", the first a letter or digit'),
]
_DOCKER_NETWORKS = frozenset({"host", "none", "bridge", "default"})
"""Names of Docker's built-in networks, none of which isolates our containers from each other."""


class Reach(StrEnum):
    """How the worker reaches a container's port."""

    PUBLISHED = "published"
    """Through a port that is published on 127.0.0.1."""
    NETWORK = "network"
    """By its address on the job network; the worker must share the engine's network namespace, as a
    container with `--network host` does. No port is published."""


class WorkerSettings(ProcessSettings):
    """The environment variable of a field is `MODELYARD_` and its name, except `DOCKER_HOST`."""

    health_file: HealthPath
    host_id: HostId = Field(
        default_factory=platform.node,
        description="This host's id, unique among all hosts: 1 to 128 letters, digits, _, . or -; "
        "the machine's name if not set. A second worker with this id waits until the first ends.",
    )
    docker_url: DockerUrl = Field(
        "unix:///var/run/docker.sock",
        validation_alias="DOCKER_HOST",
        description="The Docker Engine of this host: unix:///PATH, tcp://HOST:PORT, http:// or "
        "https://.",
    )
    worker_slots: int | None = Field(
        None,
        ge=0,
        le=10_000,
        description="Most jobs at the same time; if not set, processors, memory and devices are "
        "the only limit.",
    )
    worker_cpus: Cpus | None = Field(
        None,
        description="Processors that this host has for containers and the system, such as 16; more "
        "than the machine has lets models share them. The engine's number if not set.",
    )
    worker_memory: Size | None = Field(
        None, description="Memory that this host has, such as 64g; the engine's if not set."
    )
    worker_reserved_cpus: float = Field(
        0.0, ge=0, le=100_000, description="Processors that are kept from containers."
    )
    worker_reserved_memory: Size = Field(
        512 << 20, description="Memory that is kept from containers, such as 2g."
    )
    worker_devices: Devices = Field(
        None,
        description="This host's accelerators, as a JSON list such as "
        '[{"uuid": "GPU-1", "memory": "40g"}]; if not set, NVIDIA\'s driver is asked.',
    )
    worker_labels: HostLabels = Field(
        default_factory=dict,
        description="Labels of this host that models can require, as JSON such as "
        '{"gpu": "a100"}; up to 64.',
    )
    worker_dataset_roots: Folders = Field(
        (),
        description="Folders that may contain datasets, as a JSON list such as "
        '["/srv/datasets"]; none if not set.',
    )
    worker_allowed_images: ImagePatterns = Field(
        (),
        description='Images that may run, as a JSON list such as ["registry.example/team/*"]; none '
        'if not set; ["*"] allows every image of every publisher.',
    )
    worker_allowed_volumes: VolumePatterns = Field(
        (),
        description="Docker volumes that may be mounted as datasets, as a JSON list such as "
        '["ds-*"]; none if not set.',
    )
    worker_reach: Reach = Field(
        Reach.PUBLISHED,
        description="How the worker reaches containers: published (by a port on 127.0.0.1) or "
        "network (by their address on the job network).",
    )
    worker_network: NetworkName = Field("modelyard", description="The Docker network of all jobs.")
    worker_tmpfs_size: Size = Field(
        256 << 20,
        description="Size of a container's /tmp, which is in memory: bytes, or such as 256m or 1g.",
    )
    worker_disk: Size = Field(
        10 << 30,
        description="How much a container may write to the disk if its model sets no "
        "resources.disk: bytes, or such as 10g.",
    )
    worker_max_disk: Size = Field(
        100 << 30, description="The largest resources.disk that a model may ask for."
    )
    worker_unload_timeout_s: float = Field(
        10.0,
        gt=0,
        le=600,
        description="Seconds after an unload, or the end of a container, in which its memory must "
        "be free; a container that keeps it longer is stopped.",
    )
    worker_unload_tolerance: Size = Field(
        768 << 20,
        description="Memory of a GPU that a model server may keep after an unload, such as 768m: "
        "CUDA's context, which a process keeps until it ends, takes about 600m.",
    )
    worker_pids_limit: int = Field(
        256, ge=8, le=1 << 20, description="Most processes and threads that a container may have."
    )

    worker_runtime_dir: Folder = Field(
        default_factory=lambda: f"{tempfile.gettempdir()}/modelyard-{os.getuid()}",
        description="Folder for small files that a reboot may delete; only this user may write to "
        "it (default: modelyard-UID in the folder for temporary files).",
    )
    worker_metrics_address: MetricsAddress = "127.0.0.1:9183"

    @field_validator("worker_allowed_images")
    @classmethod
    def _patterns_can_match(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        try:
            AllowList(patterns)
        except ValueError as error:
            form = "registry/repository, registry/folder/*, registry/* or *, without tags"
            raise ValueError(f"patterns of the form {form}") from error
        return patterns

    @field_validator("worker_devices")
    @classmethod
    def _devices_differ(
        cls, devices: tuple[DeclaredDevice, ...] | None
    ) -> tuple[DeclaredDevice, ...] | None:
        if devices and len({one.uuid for one in devices}) < len(devices):
            raise ValueError("devices with different uuids")
        if devices and len(devices) > MAX_DEVICES:
            raise ValueError(f"at most {MAX_DEVICES} devices")
        return devices

    @field_validator("worker_network")
    @classmethod
    def _network_is_not_built_in(cls, name: str) -> str:
        if name in _DOCKER_NETWORKS:
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
        """Warnings about these settings for the operator, one sentence each."""
        if "*" in self.worker_allowed_images:
            return ('MODELYARD_WORKER_ALLOWED_IMAGES contains "*": every image may run.',)
        if not self.worker_allowed_images:
            return ("MODELYARD_WORKER_ALLOWED_IMAGES is not set: no image may run here.",)
        return ()

    def capacity(self, engine: EngineFacts, devices: Sequence[Device]) -> HostCapacity | None:
        """Return what this host offers; None if nobody tells its processors or its memory."""
        cpus = self.worker_cpus or engine.cpus
        memory = self.worker_memory or engine.memory
        if not cpus or not memory:
            return None
        return HostCapacity(
            cpus=cpus,
            memory=memory,
            reserved_cpus=self.worker_reserved_cpus,
            reserved_memory=self.worker_reserved_memory,
            devices=tuple(devices),
        )

    def unload_rules(self) -> UnloadRules:
        """Return when a model counts as out of memory."""
        return UnloadRules(self.worker_unload_timeout_s, self.worker_unload_tolerance)

    def plan_rules(self) -> PlanRules:
        """Return the settings that hold for all containers of this host."""
        return PlanRules(
            host_id=self.host_id,
            network=self.worker_network,
            publish=self.worker_reach is Reach.PUBLISHED,
            tmpfs_bytes=self.worker_tmpfs_size,
            pids_limit=self.worker_pids_limit,
            disk_bytes=self.worker_disk,
            max_disk_bytes=self.worker_max_disk,
        )
