"""The labels by which a worker knows its containers again, after whatever happened to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

HOST = "modelyard.host"
JOB = "modelyard.job"
OPERATION = "modelyard.operation"
GENERATION = "modelyard.generation"
SPEC = "modelyard.spec"
PORT = "modelyard.port"
READY = "modelyard.ready"
LEASE = "modelyard.lease"
STRICT = "strict"


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

    def as_labels(self) -> dict[str, str]:
        """Return them as Docker stores them."""
        labels = {
            HOST: self.host_id,
            JOB: self.job_id,
            OPERATION: self.operation_id,
            GENERATION: str(self.generation),
            SPEC: self.spec,
        }
        if self.port is not None:
            labels[PORT] = str(self.port)
        if self.ready_path is not None:
            labels[READY] = self.ready_path
        if self.strict:
            labels[LEASE] = STRICT
        return labels

    def same_container(self, other: Self) -> bool:
        """Tell whether both name one container made from one spec, by whatever operation."""
        return (self.host_id, self.job_id, self.generation, self.spec) == (
            other.host_id,
            other.job_id,
            other.generation,
            other.spec,
        )

    @classmethod
    def parse(cls, labels: Mapping[str, str]) -> Self | None:
        """Return what the labels say; None if they are not ours, or not whole."""
        try:
            return cls(
                host_id=labels[HOST],
                job_id=labels[JOB],
                operation_id=labels[OPERATION],
                generation=int(labels[GENERATION]),
                spec=labels[SPEC],
                port=int(labels[PORT]) if PORT in labels else None,
                ready_path=labels.get(READY),
                strict=labels.get(LEASE) == STRICT,
            )
        except (KeyError, ValueError):
            return None
