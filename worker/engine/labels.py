"""The labels by which a worker recognises its containers after a restart or a crash."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from modelyard.contract.ids import ID_PATTERN

NAME_PREFIX = "modelyard"
NAME_PREFIXES = re.compile(r"modelyard(\.[a-z0-9_]{1,16})?")
"""What a container's name may begin with. Workers of installations that share an engine have
different ones. The dot and the missing dash keep two of them from making the same name.
"""

HOST = "modelyard.host"
JOB = "modelyard.job"
OPERATION = "modelyard.operation"
GENERATION = "modelyard.generation"
SPEC = "modelyard.spec"
PORT = "modelyard.port"
READY = "modelyard.ready"
LEASE = "modelyard.lease"
DISK = "modelyard.disk"
PREFIX = "modelyard.prefix"
STRICT = "strict"

MAX_GENERATION = (1 << 63) - 1
MAX_PORT = 65_535


def container_name(job_id: str, generation: int, prefix: str = NAME_PREFIX) -> str:
    """Return the name of a job's container of this generation; no other name is possible."""
    return f"{prefix}-{job_id}-{generation}"


@dataclass(frozen=True, slots=True)
class ContainerLabels:
    """The labels of one container. They are set when it is created and never change."""

    host_id: str
    job_id: str
    operation_id: str
    generation: int
    spec: str
    """A short hash of the ModelSpec from which the container was created."""
    port: int | None = None
    """The port on which the model server listens inside the container."""
    ready: str | None = None
    """What answers 2xx while the model is in memory: a path, or a probe as JSON.

    It is a label because a worker that has just booted does not know the ModelSpec.
    """

    strict: bool = False
    """True if the container must not outlive its worker's lease, because the dispatcher may give
    its work to another host."""

    disk: int | None = None
    """Bytes that the container may write to the disk; None if it was created by a version without
    that limit."""

    prefix: str = NAME_PREFIX
    """What the container's name begins with."""

    @property
    def name(self) -> str:
        """The name of the container with these labels."""
        return container_name(self.job_id, self.generation, self.prefix)

    def as_labels(self) -> dict[str, str]:
        """Return the labels as Docker stores them.

        All labels are set, to an empty text where there is no value: a container inherits each
        label that is not set from its image, and an image could set any value.
        """
        return {
            HOST: self.host_id,
            JOB: self.job_id,
            OPERATION: self.operation_id,
            GENERATION: str(self.generation),
            SPEC: self.spec,
            PORT: "" if self.port is None else str(self.port),
            READY: self.ready or "",
            LEASE: STRICT if self.strict else "",
            DISK: "" if self.disk is None else str(self.disk),
            PREFIX: self.prefix,
        }

    def same_container(self, other: Self) -> bool:
        """Return whether host, job, generation and spec are equal; the operation may differ."""
        return (self.host_id, self.job_id, self.generation, self.spec) == (
            other.host_id,
            other.job_id,
            other.generation,
            other.spec,
        )

    @classmethod
    def parse(cls, labels: Mapping[str, str], *, name: str) -> Self | None:
        """Parse a container's labels; None if they are incomplete or the container is not ours.

        `name` is the container's name. Labels alone prove nothing, because an image can set them;
        the name that follows from the labels can't come from an image.
        """
        try:
            parsed = cls(
                host_id=labels[HOST],
                job_id=labels[JOB],
                operation_id=labels[OPERATION],
                generation=int(labels[GENERATION]),
                spec=labels[SPEC],
                port=int(labels[PORT]) if labels.get(PORT) else None,
                ready=labels.get(READY) or None,
                strict=labels.get(LEASE) == STRICT,
                disk=int(labels[DISK]) if labels.get(DISK) else None,
                prefix=labels.get(PREFIX) or NAME_PREFIX,
            )
        except (KeyError, ValueError):
            return None
        ours = parsed.name == name and NAME_PREFIXES.fullmatch(parsed.prefix)
        return parsed if ours and parsed.could_be_made else None

    @property
    def could_be_made(self) -> bool:
        """True if job, generation and port are such as a worker sets."""
        return (
            re.fullmatch(ID_PATTERN, self.job_id) is not None
            and 1 <= self.generation <= MAX_GENERATION
            and (self.port is None or 1 <= self.port <= MAX_PORT)
        )
