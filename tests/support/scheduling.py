"""Operations, jobs and hosts for tests of what is said of them."""

from datetime import UTC, datetime
from typing import Any

from modelyard.contract.capacity.ledger import Allocation
from modelyard.contract.capacity.offers import Device, HostCapacity
from modelyard.contract.catalog.entries import ModelSpec
from modelyard.contract.states import JobState, Verb
from modelyard.scheduling.ordering import CatalogEntries
from modelyard.scheduling.prospects import Facts
from modelyard.store.records import HostRecord, JobLine, JobRecord, OperationRecord, Reservation

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GIB = 1 << 30
A = "GPU-a"


def spec(**more: Any) -> ModelSpec:
    resources = {"cpus": 1.0, "memory": "1g"} | more.pop("resources", {})
    return ModelSpec.model_validate(
        {"name": "m", "image": "x/y", "profile": "open-inference", "port": 1} | more
        | {"resources": resources}
    )  # fmt: skip


def operation(
    verb: Verb = Verb.INFER, line: int | None = 9, state: str = "QUEUED", **more: Any
) -> OperationRecord:
    fields = {
        "operation_id": f"op-{line}",
        "job_id": "j",
        "verb": verb,
        "model": "m",
        "has_input": verb in (Verb.INFER, Verb.TEMP),
    }
    return OperationRecord.model_validate({**fields, "line": line, "state": state, **more})


def job(state: JobState = JobState.LOADED, **more: Any) -> JobRecord:
    fields: dict[str, Any] = {"job_id": "j", "state": state, "host_id": "h", "generation": 1}
    return JobRecord.model_validate({**fields, "spec": spec(), **more})


def host(*held: Allocation, **more: Any) -> HostRecord:
    offer = HostCapacity(cpus=8.0, memory=32 * GIB, devices=(Device(uuid=A, memory=8 * GIB),))
    reservations = tuple(Reservation(**dict(one), token="t") for one in held)
    fields = {
        "host_id": "h",
        "incarnation": "i",
        "slots": None,
        "capacity": offer,
        "reservations": reservations,
    }
    return HostRecord.model_validate({**fields, **more})


def catalog(*models: ModelSpec) -> CatalogEntries:
    return CatalogEntries({one.name: one for one in models}, {})


def facts(one: OperationRecord, *before: OperationRecord, of: JobRecord, **more: Any) -> Facts:
    return Facts(one, JobLine(job=of, operations=(*before, one)), NOW, **more)
