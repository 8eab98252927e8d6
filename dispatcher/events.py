"""Events: recorded facts, appended to the event log and published to subscribers."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

import structlog

from modelyard.broker import Broker
from modelyard.contract.errors import BrokerUnavailableError, ErrorInfo
from modelyard.contract.message_types import EVENT_TYPE
from modelyard.contract.messages import Event, OperationReport
from modelyard.contract.states import JobState
from modelyard.contract.topology import EVENTS
from modelyard.process.tasks import together
from modelyard.store import Store
from modelyard.store.operation_writes import AttemptTimes, ResultPlace
from modelyard.store.records import JobRecord, OperationRecord

log = structlog.get_logger(__name__)

PUBLISHED_AT_ONCE = 200

HostFact = Literal["online", "suspect", "lost", "drained"]
"""The events about hosts, each published as `host.<fact>`."""


class EventLog:
    """Appends events to the event log in MongoDB and publishes them to `modelyard.events`."""

    def __init__(self, store: Store, broker: Broker) -> None:
        self._store = store
        self._broker = broker

    async def publish(self, events: Sequence[Event]) -> None:
        """Append and publish events about facts that are already durable.

        Raises `StoreUnavailableError` if the log can't be written. An unavailable broker is only
        logged: a client that waits for an event reads the record when its wait ends.
        """
        if not events:
            return
        lasting = [event for event in events if event.progress is None]
        await together(self._store.events.append(lasting), self._publish_all(events))

    async def record(self, events: Sequence[Event]) -> frozenset[str]:
        """Append events to the log without publishing them: a stale report is not a fact.

        Return the ids of the events that the log did not have yet.
        """
        return await self._store.events.append(events)

    async def _publish_all(self, events: Sequence[Event]) -> None:
        for start in range(0, len(events), PUBLISHED_AT_ONCE):
            chunk = events[start : start + PUBLISHED_AT_ONCE]
            await together(*(self._publish(event) for event in chunk))

    async def _publish(self, event: Event) -> None:
        try:
            await self._broker.publish(
                EVENTS,
                event.type,
                event.model_dump_json(exclude_none=True).encode(),
                message_type=EVENT_TYPE,
                mandatory=False,
            )
        except BrokerUnavailableError as error:
            log.warning("event.not_published", event_type=event.type, error=str(error))


def fact_id(source: OperationRecord | OperationReport) -> str:
    """Return the id of the event about an operation's state, from its record or from a report."""
    return f"{source.operation_id}:{source.epoch}:{source.seq}:{source.state}"


def operation_event(operation: OperationRecord) -> Event:
    """Return the event that an operation is in the state of its record.

    It has `finished_at` only if it is complete: it leaves out the phase in which an attempt was
    when a host was lost or did not answer.
    """
    complete = operation.phase is None and operation.progress is None
    return Event(
        event_id=fact_id(operation),
        type=f"operation.{operation.state.lower()}",
        at=_now(),
        operation_id=operation.operation_id,
        job_id=operation.job_id,
        host_id=operation.host_id,
        verb=operation.verb,
        state=operation.state,
        epoch=operation.epoch,
        seq=operation.seq,
        generation=operation.generation,
        container_id=operation.container_id,
        error=operation.error,
        cancel_requested=operation.cancel_requested or None,
        result_bytes=operation.result_bytes,
        dispatched_at=operation.dispatched_at,
        started_at=operation.started_at,
        finished_at=operation.finished_at if complete else None,
    )


def report_event(
    report: OperationReport,
    operation: OperationRecord,
    times: AttemptTimes | None = None,
    result: ResultPlace | None = None,
) -> Event:
    """Return the event that a worker's report was recorded.

    `operation` is the record before the report, or after it; in the first case `times` and `result`
    are what was written with the report, if it ends the operation.
    """
    written: dict[str, object] = {}
    if times is not None:
        written |= {"started_at": times.started_at, "finished_at": times.finished_at}
    if result is not None:
        written["result_bytes"] = result.size
    reported = operation.model_copy(
        update={
            "job_id": report.job_id,
            "state": report.state,
            "epoch": report.epoch,
            "seq": report.seq,
            "generation": report.generation,
            "container_id": report.container_id or operation.container_id,
            "error": report.error,
            **written,
        }
    )
    return operation_event(reported).model_copy(
        update={
            "phase": report.phase,
            "progress": report.progress,
            "finished_at": reported.finished_at,
        }
    )


def job_event(report: OperationReport, state: JobState, host_id: str | None) -> Event:
    """Return the event that a report moved a job to another state."""
    return Event(
        event_id=f"job:{report.job_id}:{report.operation_id}:{report.epoch}:{state}",
        type=f"job.{state.lower()}",
        at=_now(),
        operation_id=report.operation_id,
        job_id=report.job_id,
        host_id=host_id,
        state=state,
        generation=report.generation,
        container_id=report.container_id if state.live else None,
        error=report.error,
    )


def stale_event(report: OperationReport, host_id: str, why: str) -> Event:
    """Return the event that a report was fenced off as stale; it goes only into the log."""
    return Event(
        event_id=f"{fact_id(report)}:stale:{host_id}",
        type="operation.stale_report",
        at=_now(),
        operation_id=report.operation_id,
        job_id=report.job_id,
        host_id=host_id,
        state=report.state,
        epoch=report.epoch,
        seq=report.seq,
        generation=report.generation,
        error=report.error,
        detail={"why": why},
    )


def stale_host_event(host_id: str, incarnation: str, number: int, *, what: str) -> Event:
    """Return the event that an earlier incarnation sent a boot or inventory report.

    It goes only into the log.
    """
    return Event(
        event_id=f"host:{host_id}:{incarnation}:{number}:{what}:stale",
        type="host.stale_report",
        at=_now(),
        host_id=host_id,
        detail={"why": "other_incarnation", "incarnation": incarnation, "what": what},
    )


def observed_event(
    job: JobRecord, state: JobState, error: ErrorInfo | None, host_id: str | None
) -> Event:
    """Return the event that a job was found in a state other than its recorded one."""
    return Event(
        event_id=f"job:{job.job_id}:{job.generation}:{job.version}:{state}",
        type=f"job.{state.lower()}",
        at=_now(),
        job_id=job.job_id,
        host_id=host_id,
        state=state,
        generation=job.generation,
        container_id=job.container_id if state.live else None,
        error=error,
    )


def host_event(host_id: str, fact: HostFact, incarnation: str | None) -> Event:
    """Return an event about a host."""
    now = _now()
    return Event(
        event_id=f"host:{host_id}:{fact}:{incarnation}:{now.timestamp()}",
        type=f"host.{fact}",
        at=now,
        host_id=host_id,
        detail={"incarnation": incarnation},
    )


def _now() -> datetime:
    """Return the time for people who read the log; no decision uses it."""
    return datetime.now(UTC)
