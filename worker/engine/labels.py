"""The labels by which a worker knows its containers again, after whatever happened to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

NAME_PREFIX = "modelyard-"

HOST = "modelyard.host"
JOB = "modelyard.job"
OPERATION = "modelyard.operation"
GENERATION = "modelyard.generation"
SPEC = "modelyard.spec"
PORT = "modelyard.port"
READY = "modelyard.ready"
LEASE = "modelyard.lease"
DISK = "modelyard.disk"
STRICT = "strict"


def container_name(job_id: str, generation: int) -> str:
    """Return the one name that a job's container of this generation can have."""
    return f"{NAME_PREFIX}{job_id}-{generation}"


@dataclass(frozen=True, slots=True)
class ContainerLabels:
    """What is written on a container when it is created; labels never change afterwards."""

    host_id: str
    job_id: str
    operation_id: str
    generation: int
    spec: str
    """A short hash of the ModelSpec that it was made from."""
    port: int | None = None
    """The port that the model server listens on, inside."""
    ready_path: str | None = None
    """Answers 2xx once the model is in memory; a worker that has just booted knows no ModelSpec."""

    strict: bool = False
    """True if it must not outlive its worker's lease, for it may be made anew on another host."""

    disk: int | None = None
    """Bytes that it may write to the disk; None on one that was made before there was a limit."""

    @property
    def name(self) -> str:
        """The name that the container of these labels has."""
        return container_name(self.job_id, self.generation)

    def as_labels(self) -> dict[str, str]:
        """Return them as Docker stores them.

        All of them, empty where there is nothing to say: a container inherits what it is not given
        from its image, and an image could say anything.
        """
        return {
            HOST: self.host_id,
            JOB: self.job_id,
            OPERATION: self.operation_id,
            GENERATION: str(self.generation),
            SPEC: self.spec,
            PORT: "" if self.port is None else str(self.port),
            READY: self.ready_path or "",
            LEASE: STRICT if self.strict else "",
            DISK: "" if self.disk is None else str(self.disk),
        }

    def same_container(self, other: Self) -> bool:
        """Tell whether both name one container made from one spec, by whatever operation."""
        return (self.host_id, self.job_id, self.generation, self.spec) == (
            other.host_id,
            other.job_id,
            other.generation,
            other.spec,
        )

    @classmethod
    def parse(cls, labels: Mapping[str, str], *, name: str) -> Self | None:
        """Return what the labels say; None if they are not ours, or not whole.

        `name` is the container's own: labels come from images too, but the name of one of ours only
        from us.
        """
        try:
            made = cls(
                host_id=labels[HOST],
                job_id=labels[JOB],
                operation_id=labels[OPERATION],
                generation=int(labels[GENERATION]),
                spec=labels[SPEC],
                port=int(labels[PORT]) if labels.get(PORT) else None,
                ready_path=labels.get(READY) or None,
                strict=labels.get(LEASE) == STRICT,
                disk=int(labels[DISK]) if labels.get(DISK) else None,
            )
        except (KeyError, ValueError):
            return None
        return made if made.name == name else None
