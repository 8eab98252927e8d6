"""Events: recorded facts, appended to the event log and published to subscribers."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Literal

import structlog
from pydantic import Field

from dispatcher.leadership import Term
from dispatcher.metrics import DispatcherMetrics
from modelyard.broker import Broker, DirectReply, backoff_s
from modelyard.contract.errors import (
    BrokerUnavailableError,
    ErrorInfo,
    InvalidRequestError,
    StoreUnavailableError,
)
from modelyard.contract.message_types import EVENT_TYPE
from modelyard.contract.messages import MAX_EVENT_RESULT_BYTES, Event, OperationReport
from modelyard.contract.states import JobState, OperationState
from modelyard.contract.strict_json import JsonValue, parse_json
from modelyard.contract.topology import EVENTS
from modelyard.process.tasks import together
from modelyard.store import Store
from modelyard.store.operation_writes import Receipt, ResultPlace
from modelyard.store.records import JobRecord, OperationRecord, ReplyAddress

log = structlog.get_logger(__name__)

FLUSHED_AT_ONCE = 500
"""Most events that are appended with one write."""
LINGER_S = 0.02
"""Seconds that events wait for others if nobody waits for them: the end of an inference usually
comes so soon after its dispatch, and both are one write."""
MOST_NOTED = 10_000
"""Events that may wait before scheduling waits for them."""

HostFact = Literal["online", "suspect", "lost", "drained", "device_tainted", "device_untainted"]
"""The events about hosts, each published as `host.<fact>`."""


@dataclass(frozen=True, slots=True)
class _After:
    """What comes after the events that were noted before it."""

    work: Callable[[], Awaitable[object]] | None
    published: asyncio.Future[None] | None = None

    def fail(self, error: StoreUnavailableError) -> None:
        if self.published is not None and not self.published.done():
            self.published.set_exception(error)

    async def carry_out(self) -> None:
        if self.published is not None and not self.published.done():
            self.published.set_result(None)
        if self.work is not None:
            try:
                await self.work()
            except BrokerUnavailableError as error:
                log.debug("events.not_settled", error=str(error))


class EventLog:
    """Appends events to the event log in MongoDB and publishes them to `modelyard.events`.

    They are noted after their facts are durable, and published in this order by `run`, beside the
    work that goes on. A delivery whose facts they are is acknowledged after them (`then`): if the
    dispatcher dies before, it is handled again, and they are published by whoever does.
    """

    def __init__(
        self, store: Store, broker: Broker, term: Term, metrics: DispatcherMetrics
    ) -> None:
        self._metrics = metrics
        self._store = store
        self._broker = broker
        self._term = term
        self._noted: deque[Event | _After] = deque()
        self._any_noted = asyncio.Event()
        self._hurry = asyncio.Event()
        """Set once somebody waits for what is noted."""
        self._redirected: dict[str, ReplyAddress] = {}
        """Open operations whose ends are told elsewhere than their events say."""

    def note(self, events: Iterable[Event]) -> None:
        """Have events about durable facts published soon."""
        some = list(events)
        self._noted.extend(some)
        self._wake(hurry=any(one.type not in _LINGERING for one in some))

    def then(self, work: Callable[[], Awaitable[object]]) -> None:
        """Have `work` done once all events that were noted before are published.

        If it raises `BrokerUnavailableError`, that is all: the broker delivers again. It is not
        done after the end of the term: the next leader has to see what this one did at the last.
        """
        self._noted.append(_After(work))
        self._wake(hurry=False)

    def reply(self, replies: Sequence[tuple[ReplyAddress, Event]]) -> None:
        """Have events sent to these addresses alone, once all noted before are published."""
        if replies:
            direct = [
                DirectReply(address.queue, address.correlation_id, _body_of(event))
                for address, event in replies
            ]
            self.then(partial(self._broker.reply, direct, message_type=EVENT_TYPE))

    def redirect(self, addresses: Mapping[str, ReplyAddress]) -> None:
        """Have the ends of operations told at these addresses, whatever their events name.

        An end that is being written meanwhile was read with an earlier address, or with none.
        """
        self._redirected.update(addresses)

    def redirect_no_more(self, operation_ids: Iterable[str]) -> None:
        """Have the ends of operations told where their events say."""
        for operation_id in operation_ids:
            self._redirected.pop(operation_id, None)

    async def publish(self, events: Sequence[Event]) -> None:
        """Note events; return once they, and all that were noted before, are published.

        Raises `StoreUnavailableError` if the log can't be written now; it is tried again later.
        """
        if events:
            self.note(events)
            await self._all_published()

    async def room(self) -> None:
        """Return at once while fewer than `MOST_NOTED` events wait, else once these are published.

        Raises `StoreUnavailableError` as `publish` does.
        """
        if len(self._noted) >= MOST_NOTED:
            await self._all_published()

    async def settled(self) -> None:
        """Return once what was noted is published and done, or MongoDB does not take it now."""
        if self._noted:
            with suppress(StoreUnavailableError):
                await self._all_published()

    async def record(self, events: Sequence[Event]) -> frozenset[str]:
        """Append events to the log without publishing them: a stale report is not a fact.

        Return the ids of the events that the log did not have yet.
        """
        new = await self._store.events.append(events)
        self._metrics.recorded(events, new)
        return new

    async def run(self) -> None:
        """Publish what is noted until cancelled; what MongoDB does not take is kept.

        Raises `NotLeadingError` once the term is over.
        """
        failures = 0
        while True:
            await self._any_noted.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    await self._hurry.wait()
            batch = list(islice(self._noted, FLUSHED_AT_ONCE))
            events = [one for one in batch if isinstance(one, Event)]
            try:
                await self._flush(events)
            except StoreUnavailableError as error:
                failures += 1
                if failures == 1:
                    log.warning("events.waiting", error=str(error))
                for one in self._noted:
                    if isinstance(one, _After):
                        one.fail(error)
                await asyncio.sleep(backoff_s(failures))
                continue
            failures = 0
            for one in batch:
                self._term.check()
                self._noted.popleft()
                if isinstance(one, _After):
                    await one.carry_out()
            if not self._noted:
                self._any_noted.clear()
                self._hurry.clear()

    async def _all_published(self) -> None:
        published: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._noted.append(_After(None, published))
        self._wake(hurry=True)
        await published

    def _wake(self, *, hurry: bool) -> None:
        self._any_noted.set()
        if hurry or len(self._noted) >= FLUSHED_AT_ONCE:
            self._hurry.set()

    async def _flush(self, events: Sequence[Event]) -> None:
        """Append and publish. An unavailable broker is only logged: clients read the record."""
        if events:
            lasting = [event for event in events if event.progress is None]
            began = time.monotonic()
            new, _ = await together(self._store.events.append(lasting), self._publish_all(events))
            self._metrics.recorded(lasting, new)
            self._metrics.handled("events", len(events), time.monotonic() - began)
            if self._redirected:
                self.redirect_no_more(one.operation_id or "" for one in events if _is_end(one))

    async def _publish_all(self, events: Sequence[Event]) -> None:
        messages = [(event.type, _body_of(event)) for event in events]
        replies = [
            DirectReply(address.queue, address.correlation_id, body)
            for event, (_, body) in zip(events, messages, strict=True)
            if (address := self._address_of(event)) is not None
        ]
        try:
            await self._broker.publish_unconfirmed(EVENTS, messages, message_type=EVENT_TYPE)
            await self._broker.reply(replies, message_type=EVENT_TYPE)
        except BrokerUnavailableError as error:
            log.warning("events.not_published", count=len(events), error=str(error))

    def _address_of(self, event: Event) -> ReplyAddress | None:
        """Return where an event is told besides: the end of an operation, to its publisher."""
        if not isinstance(event, OperationEnd):
            return None
        if self._redirected and _is_end(event):
            return self._redirected.get(event.operation_id or "", event.reply)
        return event.reply


_LINGERING = frozenset({"operation.queued", "operation.dispatched", "operation.running"})
"""Events that no request waits for."""


def fact_id(source: OperationRecord | OperationReport) -> str:
    """Return the id of the event about an operation's state, from its record or from a report."""
    return f"{source.operation_id}:{source.epoch}:{source.seq}:{source.state}"


class OperationEnd(Event):
    """The event of an operation's end, with the address where its publisher waits for it."""

    reply: ReplyAddress | None = Field(default=None, exclude=True)


def _is_end(event: Event) -> bool:
    return isinstance(event.state, OperationState) and event.state.terminal


def _body_of(event: Event) -> bytes:
    return event.model_dump_json(exclude_none=True).encode()


def operation_event(operation: OperationRecord) -> Event:
    """Return the event that an operation is in the state of its record.

    It has `finished_at` only if it is complete: it leaves out the phase in which an attempt was
    when a host was lost or did not answer.
    """
    complete = operation.phase is None and operation.progress is None
    told = operation.reply if operation.state.terminal else None
    return OperationEnd(
        reply=told,
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
        result_type=operation.result_type,
        result_sha256=operation.result_sha256,
        accepted_at=operation.accepted_at if operation.state.terminal else None,
        dispatched_at=operation.dispatched_at,
        started_at=operation.started_at,
        finished_at=operation.finished_at if complete else None,
        detail={"reason": operation.reason} if operation.reason else {},
    )


def report_event(
    report: OperationReport,
    operation: OperationRecord,
    receipt: Receipt | None = None,
    result: ResultPlace | None = None,
) -> Event:
    """Return the event that a worker's report was recorded.

    `operation` is the record before the report, or after it; in the first case `receipt` and
    `result` are what was written with the report, if it ends the operation.
    """
    written: dict[str, object] = {}
    if receipt is not None:
        written["started_at"] = receipt.started_at
        if report.state.terminal:
            written["finished_at"] = receipt.finished_at
    if result is not None:
        written |= {
            "result_bytes": result.size,
            "result_type": result.content_type,
            "result_sha256": result.sha256,
        }
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
            "result": _small(report.result_json),
        }
    )


def ended_event(operation: OperationRecord, result_json: str | None) -> Event:
    """Return the event of an operation's end from its record alone, long after it."""
    return operation_event(operation).model_copy(update={"result": _small(result_json)})


def _small(result_json: str | None) -> JsonValue:
    """Return a result that is small enough for an event; else null."""
    if result_json is None or len(result_json) > MAX_EVENT_RESULT_BYTES:
        return None
    try:
        return parse_json(result_json.encode(), max_bytes=MAX_EVENT_RESULT_BYTES)
    except InvalidRequestError:  # too large in UTF-8, or not JSON by the rules of a request
        return None


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


def host_event(host_id: str, fact: HostFact, incarnation: str | None, **detail: object) -> Event:
    """Return an event about a host."""
    now = _now()
    return Event(
        event_id=":".join(
            ("host", host_id, fact, str(incarnation), str(now.timestamp()), *_uuid_in(detail))
        ),
        type=f"host.{fact}",
        at=now,
        host_id=host_id,
        detail={"incarnation": incarnation, **detail},
    )


def _uuid_in(detail: Mapping[str, object]) -> tuple[str, ...]:
    """Return the device that an event is about: two may change at the same moment."""
    return (str(detail["uuid"]),) if "uuid" in detail else ()


def _now() -> datetime:
    """Return the time for people who read the log; no decision uses it."""
    return datetime.now(UTC)
