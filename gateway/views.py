"""Views: turns records into the answers that clients get."""

import base64
from typing import Any, Literal
from urllib.parse import quote

from modelyard.contract.answers import Accepted, DeadLetterSummary, DeadLetterView
from modelyard.contract.capacity.offers import MILLI
from modelyard.contract.content.media_types import JSON_TYPE
from modelyard.contract.states import OperationState, Verb
from modelyard.contract.views import (
    Amount,
    DeviceView,
    DrainView,
    FootprintView,
    HostView,
    JobView,
    Links,
    OperationView,
)
from modelyard.store.capacity.footprints import FootprintRecord
from modelyard.store.records import (
    DeadLetter,
    DrainRecord,
    HostRecord,
    JobRecord,
    OperationRecord,
)

_WITH_RESULT = frozenset({Verb.INFER, Verb.TEMP})


def operation_path(operation_id: str) -> str:
    """Return the URL path of an operation."""
    return f"/v1/operations/{quote(operation_id, safe='')}"


def job_path(job_id: str) -> str:
    """Return the URL path of a job."""
    return f"/v1/jobs/{quote(job_id, safe='')}"


def accepted(operation_id: str, job_id: str, verb: Verb) -> Accepted:
    """Return the answer to a request that has been made durable."""
    return Accepted(
        operation_id=operation_id,
        job_id=job_id,
        state=OperationState.QUEUED,
        links=_links(operation_id, job_id, with_result=verb in _WITH_RESULT),
    )


def operation_view(record: OperationRecord) -> OperationView:
    """Return an operation as clients see it: without input and result."""
    awaited = record.verb in _WITH_RESULT and not record.state.terminal
    return OperationView(
        operation_id=record.operation_id,
        job_id=record.job_id,
        operation_type=record.verb,
        state=record.state,
        model=record.model,
        dataset=record.dataset,
        phase=record.phase,
        progress=record.progress,
        waiting_for=record.waiting_for,
        host_id=record.host_id,
        container_id=record.container_id,
        generation=record.generation,
        epoch=record.epoch,
        priority=record.priority,
        timeout_s=record.timeout_s,
        queue_timeout_s=record.queue_timeout_s,
        metadata=record.metadata,
        source=record.source,
        retry_of=record.retry_of,
        reason=record.reason,
        payload_mismatch=record.payload_mismatch,
        cancel_requested=record.cancel_requested,
        not_before=record.not_before if record.state is OperationState.QUEUED else None,
        error=record.error,
        result_bytes=record.result_bytes,
        result_type=None if record.result_bytes is None else record.result_type or JSON_TYPE,
        result_sha256=record.result_sha256,
        accepted_at=record.accepted_at,
        dispatched_at=record.dispatched_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        links=_links(
            record.operation_id,
            record.job_id,
            with_result=awaited or (record.result_bytes is not None and not record.result_gone),
        ),
    )


def job_view(record: JobRecord) -> JobView:
    """Return a job as clients see it."""
    return JobView(
        job_id=record.job_id,
        state=record.state,
        model=record.spec.name if record.spec else None,
        dataset=record.dataset_spec.name if record.dataset_spec else None,
        host_id=record.host_id,
        container_id=record.container_id,
        generation=record.generation,
        error=record.error,
        created_at=record.created_at,
        updated_at=record.updated_at,
        links={
            "self": job_path(record.job_id),
            "operations": f"/v1/operations?job_id={quote(record.job_id, safe='')}",
        },
    )


def host_view(record: HostRecord, *, with_content: bool = False) -> HostView:
    """Return a host as clients see it; `with_content` with what it has at hand, which is long."""
    return HostView(
        host_id=record.host_id,
        liveness=record.liveness,
        admission=record.admission,
        labels=record.labels,
        drain=_drain_view(record.drain) if record.drain else None,
        slots=record.slots,
        slots_used=record.slots_used,
        cpus=_cpus(record),
        memory=_memory(record),
        devices=_devices(record),
        jobs=tuple(held.job_id for held in record.reservations),
        running=record.running,
        fenced_off=record.fenced_off,
        images=tuple(sorted(record.images)) if with_content else (),
        datasets=tuple(sorted(record.datasets)) if with_content else (),
        incarnation=record.incarnation,
        engine=record.engine,
        last_seen=record.last_seen,
    )


def _cpus(record: HostRecord) -> Amount | None:
    capacity = record.capacity
    if capacity is None:
        return None
    return Amount(
        allocatable=capacity.allocatable_millicpus / MILLI,
        allocated=sum(held.millicpus for held in record.reservations) / MILLI,
        reserved=capacity.reserved_cpus,
    )


def _memory(record: HostRecord) -> Amount | None:
    capacity = record.capacity
    if capacity is None:
        return None
    return Amount(
        allocatable=capacity.allocatable_memory,
        allocated=sum(held.all_memory for held in record.reservations),
        resident=record.memory_of_models,
        reserved=capacity.reserved_memory,
        measured=record.memory_used,
    )


def _devices(record: HostRecord) -> tuple[DeviceView, ...]:
    """Return the devices, each with who holds how much of it."""
    measured = {one.uuid: one for one in record.readings}
    views: list[DeviceView] = []
    for device in record.capacity.devices if record.capacity else ():
        resident = {
            held.job_id: held.resident.devices[device.uuid]
            for held in record.reservations
            if held.resident and device.uuid in held.resident.devices
        }
        views.append(
            DeviceView(
                uuid=device.uuid,
                index=device.index,
                model=device.model,
                memory=device.memory,
                allocated=sum(resident.values()),
                jobs=tuple(
                    held.job_id for held in record.reservations if device.uuid in held.devices
                ),
                resident=resident,
                measured=measured.get(device.uuid),
            )
        )
    return tuple(views)


def footprint_view(record: FootprintRecord) -> FootprintView:
    """Return a footprint as clients see it."""
    return FootprintView(
        image=record.image,
        device=record.device,
        memory=record.memory,
        device_memory=record.device_memory,
        loads=record.loads,
        last_seen=record.last_seen,
    )


def dead_letter_path(dead_letter_id: str) -> str:
    """Return the URL path of a dead letter."""
    return f"/v1/dead-letters/{quote(dead_letter_id, safe='')}"


def dead_letter_summary(record: DeadLetter) -> DeadLetterSummary:
    """Return a dead letter as lists show it: without headers and payload."""
    return DeadLetterSummary(**_dead_letter_fields(record))


def dead_letter_view(record: DeadLetter) -> DeadLetterView:
    """Return a dead letter with its headers and as much of its payload as was recorded."""
    text, encoding = _readable(record.payload)
    return DeadLetterView(
        **_dead_letter_fields(record),
        headers=record.headers,
        payload=text,
        payload_encoding=encoding,
        payload_truncated=record.payload_bytes > len(record.payload),
    )


def _dead_letter_fields(record: DeadLetter) -> dict[str, Any]:
    here = dead_letter_path(record.dead_letter_id)
    return {
        "dead_letter_id": record.dead_letter_id,
        "reason": record.reason,
        "detail": record.detail,
        "queue": record.queue,
        "routing_key": record.routing_key,
        "message_id": record.message_id,
        "message_type": record.message_type,
        "message_priority": record.message_priority,
        "content_type": record.content_type,
        "content_encoding": record.content_encoding,
        "payload_bytes": max(record.payload_bytes, len(record.payload)),
        "replays": record.replays,
        "replayed_at": record.replayed_at,
        "recorded_at": record.recorded_at,
        "links": {"self": here, "replay": f"{here}/replay"},
    }


def _readable(payload: bytes) -> tuple[str, Literal["utf-8", "base64"]]:
    try:
        return payload.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        return base64.b64encode(payload).decode("ascii"), "base64"


def _drain_view(record: DrainRecord) -> DrainView:
    return DrainView(move=record.move, deadline=record.deadline_at, done=record.done)


def _links(operation_id: str, job_id: str | None, *, with_result: bool) -> Links:
    here = operation_path(operation_id)
    return Links(
        self=here,
        job=job_path(job_id) if job_id else None,
        result=f"{here}/result" if with_result else None,
    )
