"""What container a command asks for, decided field by field before any engine is asked. Pure."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from posixpath import normpath
from typing import Literal

from modelyard.contract.catalog import ModelSpec
from modelyard.contract.messages import HostCommand
from modelyard.contract.states import Verb
from modelyard.contract.strict_json import canonical_json
from worker.labels import ContainerLabels
from worker.placeholders import fill
from worker.profiles import inventory_path

NAME_PREFIX = "modelyard-"


@dataclass(frozen=True, slots=True)
class PlanRules:
    """What the host decides for all of its containers."""

    host_id: str
    network: str = "modelyard"
    publish: bool = True
    """True: the port is published on loopback; False: reached by its address on the network."""
    tmpfs_bytes: int = 256 << 20
    pids_limit: int = 256


@dataclass(frozen=True, slots=True)
class DatasetMount:
    """The dataset in the container; always read-only."""

    kind: Literal["bind", "volume"]
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class ContainerPlan:
    """Everything about a container that is not fixed for all of them.

    There is no field for privileges, capabilities, devices, namespaces or other binds, so no
    request and no model can ask for them; `docker_config` adds what is fixed.
    """

    name: str
    labels: ContainerLabels
    image: str
    command: tuple[str, ...] | None
    env: Mapping[str, str]
    user: str
    port: int | None
    publish: bool
    network: str
    read_only: bool
    tmpfs_bytes: int
    kept_folder: str | None
    """A folder on an anonymous volume: a result file must outlive the process, tmpfs does not."""
    memory: int
    cpus: float
    gpus: int
    pids_limit: int
    stop_grace_s: float
    dataset: DatasetMount | None


def container_name(job_id: str, generation: int) -> str:
    """Return the one name that a job's container of this generation can have."""
    return f"{NAME_PREFIX}{job_id}-{generation}"


def spec_hash(spec: ModelSpec) -> str:
    """Return a short hash that is equal for equal specs."""
    text = canonical_json(spec.model_dump(mode="json"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def plan_container(
    command: HostCommand, dataset: DatasetMount | None, rules: PlanRules
) -> ContainerPlan:
    """Return the container that `command` asks for; `dataset` is already checked."""
    spec = command.model
    values = {"model": spec.served_name, "dataset": dataset.target if dataset else ""}
    return ContainerPlan(
        name=container_name(command.job_id, command.generation),
        labels=ContainerLabels(
            host_id=rules.host_id,
            job_id=command.job_id,
            operation_id=command.operation_id,
            generation=command.generation,
            spec=spec_hash(spec),
            port=spec.port,
            ready_path=inventory_path(spec),
            strict=command.verb is Verb.TEMP or spec.on_host_lost == "recreate",
        ),
        image=spec.image,
        command=tuple(fill(part, values) for part in spec.command) if spec.command else None,
        env={name: fill(value, values) for name, value in spec.env.items()},
        # A uid alone would get group 0 from the engine.
        user=spec.user if ":" in spec.user else f"{spec.user}:{spec.user}",
        port=spec.port,
        publish=rules.publish,
        network=rules.network,
        read_only=spec.read_only,
        tmpfs_bytes=rules.tmpfs_bytes,
        kept_folder=_kept_folder(spec),
        memory=spec.resources.memory,
        cpus=spec.resources.cpus,
        gpus=spec.resources.gpus,
        pids_limit=rules.pids_limit,
        stop_grace_s=spec.stop_grace_s,
        dataset=dataset,
    )


def _kept_folder(spec: ModelSpec) -> str | None:
    """Return the folder of `result_file`; all of /tmp if it lies there, which is tmpfs else."""
    if spec.result_file is None:
        return None
    path = PurePosixPath(normpath(spec.result_file))
    if path.is_relative_to("/tmp"):  # noqa: S108 - inside of the container
        return "/tmp"  # noqa: S108
    # A volume can't be mounted on the root; there the file needs `read_only: false`.
    return None if path.parent == PurePosixPath("/") else str(path.parent)
