"""Plans the container for a command: every field is decided before it is created. Pure."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modelyard.contract.catalog.entries import ModelSpec, Resources
from modelyard.contract.catalog.mounts import kept_folder, normal, overlap
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.messages import HostCommand
from modelyard.contract.states import Verb
from modelyard.contract.strict_json import canonical_json
from worker.engine.labels import NAME_PREFIX, ContainerLabels, container_name
from worker.engine.plan import ContainerPlan, DatasetMount, ImageFacts
from worker.model_server.profiles import inventory_label
from worker.model_server.templates import fill

_SHM_BYTES = 64 << 20
_HOME = "HOME"
_NO_FACTS = ImageFacts()
_ADDED_LATER = ("shm", "disk", "resident_memory")
"""Fields of the resources that were added after `spec_hash` was in use; see there."""


@dataclass(frozen=True, slots=True)
class PlanRules:
    """The settings that hold for all containers of a host."""

    host_id: str
    network: str = "modelyard"
    publish: bool = True
    """True: the port is published on loopback; False: reached by its address on the network."""
    tmpfs_bytes: int = 256 << 20
    pids_limit: int = 256
    disk_bytes: int = 10 << 30
    """What a container may write to the disk if its model sets no limit."""
    max_disk_bytes: int = 100 << 30
    """The highest disk limit that a model may ask for."""
    prefix: str = NAME_PREFIX
    """What the names of containers begin with."""


def spec_hash(spec: ModelSpec) -> str:
    """Return a short hash of a spec; equal specs have equal hashes in all versions.

    A field that older versions do not know is left out while it is not set, so a container that an
    older version created still matches its spec.
    """
    document = spec.model_dump(mode="json")
    # It says nothing about the container.
    del document["residency"]
    # Nor does it: an answer is read by it, whatever container gave it.
    del document["result_type"]
    if document["entrypoint"] is None:
        del document["entrypoint"]
    for name in _ADDED_LATER:
        if document["resources"][name] is None:
            del document["resources"][name]
    return hashlib.sha256(canonical_json(document).encode()).hexdigest()[:16]


def plan_container(
    command: HostCommand,
    dataset: DatasetMount | None,
    rules: PlanRules,
    image: ImageFacts = _NO_FACTS,
) -> ContainerPlan:
    """Return the plan for `command`; the caller has checked `dataset`.

    Raises `create_failed` if the image or the host can't provide what the model asks for.
    """
    spec = command.model
    _check_image_volumes(spec, dataset, image)
    values = {"model": spec.served_name, "dataset": dataset.target if dataset else ""}
    return ContainerPlan(
        name=container_name(command.job_id, command.generation, rules.prefix),
        labels=ContainerLabels(
            host_id=rules.host_id,
            job_id=command.job_id,
            operation_id=command.operation_id,
            generation=command.generation,
            spec=spec_hash(spec),
            port=spec.port,
            ready=inventory_label(spec),
            strict=command.verb is Verb.TEMP or spec.on_host_lost == "recreate",
            disk=_disk(spec.resources, rules),
            prefix=rules.prefix,
        ),
        image=spec.image,
        entrypoint=_filled(spec.entrypoint, values),
        command=_filled(spec.command or None, values),
        env=_home(spec, image) | {name: fill(value, values) for name, value in spec.env.items()},
        # The engine would give a uid without a group the group 0.
        user=spec.user if ":" in spec.user else f"{spec.user}:{spec.user}",
        port=spec.port,
        publish=rules.publish,
        network=rules.network,
        read_only=spec.read_only,
        tmpfs_bytes=rules.tmpfs_bytes,
        kept_folder=_kept_folder(spec),
        memory=spec.resources.memory,
        shm=min(spec.resources.shm or _SHM_BYTES, spec.resources.memory),
        cpus=spec.resources.cpus,
        devices=_devices(command),
        pids_limit=rules.pids_limit,
        stop_grace_s=spec.stop_grace_s,
        dataset=dataset,
    )


def _filled(parts: Sequence[str] | None, values: Mapping[str, str]) -> tuple[str, ...] | None:
    return None if parts is None else tuple(fill(part, values) for part in parts)


def _devices(command: HostCommand) -> tuple[str, ...]:
    """Return the devices that the dispatcher has bound; raises `create_failed` without them."""
    if len(command.devices) < command.model.resources.gpus:
        raise ModelyardError(
            ErrorCode.CREATE_FAILED,
            f"The model needs {command.model.resources.gpus} GPUs and the command names "
            f"{len(command.devices)}: the dispatcher is of an older version.",
        )
    return command.devices


def _kept_folder(spec: ModelSpec) -> str | None:
    folder = kept_folder(spec.result_file)
    return str(folder) if folder else None


def _home(spec: ModelSpec, image: ImageFacts) -> dict[str, str]:
    """Set HOME to a writable folder, unless the model or its image sets it.

    A numeric user has no home, and libraries that write to it would fail.
    """
    return {} if _HOME in spec.env or _HOME in image.env else {_HOME: "/tmp"}  # noqa: S108 - inside


def _disk(resources: Resources, rules: PlanRules) -> int:
    if resources.disk is None:
        return min(rules.disk_bytes, rules.max_disk_bytes)
    if resources.disk > rules.max_disk_bytes:
        raise ModelyardError(
            ErrorCode.CREATE_FAILED,
            f"resources.disk is {resources.disk} bytes, but this host allows a container at most "
            f"{rules.max_disk_bytes} (MODELYARD_WORKER_MAX_DISK).",
        )
    return resources.disk


def _check_image_volumes(spec: ModelSpec, dataset: DatasetMount | None, image: ImageFacts) -> None:
    """Check that no volume of the image lies above or below one of our mounts.

    On the same folder our mount replaces the volume. Raises `create_failed`.
    """
    targets = {
        "dataset_mount": dataset.target if dataset else None,
        "result_file": _kept_folder(spec),
    }
    for field, target in targets.items():
        for volume in image.volumes if target is not None else ():
            one, other = normal(volume), normal(target or "")
            if one != other and overlap(one, other):
                raise ModelyardError(
                    ErrorCode.CREATE_FAILED,
                    f"The image declares a volume at {one}, which lies above or below {other} of "
                    f"{field}: one would hide the other. Use another {field}.",
                )
