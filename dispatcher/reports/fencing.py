"""Fencing: tells current reports from stale ones, and counts and logs the stale ones.

A report is stale if its attempt (host, epoch, generation) is not the operation's current one any
more, or if a later report of the attempt is recorded. Stale reports change no state.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from dispatcher.control import ControlPublisher
from dispatcher.events import EventLog, fact_id, stale_event
from modelyard.contract.messages import CancelOperation, OperationReport
from modelyard.contract.states import REPORTED_JOB_STATES, REPORTED_STATES, OperationState
from modelyard.store import Store
from modelyard.store.operation_writes import report_sources
from modelyard.store.records import LastReport, OperationRecord

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StaleReport:
    """A report that was fenced off, and why."""

    host_id: str
    report: OperationReport
    why: str

    @property
    def sender_still_works(self) -> bool:
        """True if its worker still runs an attempt that was superseded, so it has to stop."""
        return not self.report.state.terminal and self.why != "older"


@dataclass(frozen=True, slots=True)
class CurrentReport:
    """A report that was not fenced off, with the operation as it was before the report."""

    report: OperationReport
    operation: OperationRecord
    told: LastReport | None = None
    """The last message of its host so far in the batch: its incarnation and number."""

    @property
    def new(self) -> bool:
        """False if the report is recorded already: it only repairs what a crash left half done."""
        return self.report.seq > self.operation.seq


def latest(reports: Iterable[tuple[str, OperationReport]]) -> list[tuple[str, OperationReport]]:
    """Return the newest report of each host on each operation: every report has the full state.

    One that no worker can know of takes no other one's place.
    """
    kept: dict[tuple[str, str], OperationReport] = {}
    for host_id, report in reports:
        held = kept.get((host_id, report.operation_id))
        if held is None or _order(held) < _order(report):
            kept[host_id, report.operation_id] = report
    return [(host_id, report) for (host_id, _), report in kept.items()]


def fence(
    host_id: str, report: OperationReport, operation: OperationRecord | None
) -> CurrentReport | str:
    """Return the report as current, or the reason why it is stale."""
    if operation is None:
        return "unknown_operation"
    for differs, why in (
        (operation.host_id != host_id, "other_host"),
        (operation.epoch != report.epoch, "other_epoch"),
        (operation.job_id != report.job_id, "other_job"),
        (operation.generation not in (None, report.generation), "other_job"),
        (not _is_a_workers_to_tell(report), "illegal"),
    ):
        if differs:
            return why
    requeued = operation.state is OperationState.QUEUED and report.state.terminal
    if report.seq < operation.seq or (requeued and report.seq == operation.seq):
        return "older"
    repeated = report.seq == operation.seq and report.state == operation.state
    if repeated or operation.state in report_sources(report.state):
        return CurrentReport(report, operation)
    return "illegal"


def _order(report: OperationReport) -> tuple[bool, int, int]:
    return _is_a_workers_to_tell(report), report.epoch, report.seq


def _is_a_workers_to_tell(report: OperationReport) -> bool:
    """Tell whether a worker can know what a report says, whatever is recorded."""
    job_state = report.job_state
    return report.state in REPORTED_STATES and (
        job_state is None or job_state in REPORTED_JOB_STATES
    )


class Fencing:
    """Logs and counts stale reports, and cancels the attempts that still send them."""

    def __init__(self, store: Store, event_log: EventLog, control: ControlPublisher) -> None:
        self._store = store
        self._event_log = event_log
        self._control = control

    async def reject(self, stale: Sequence[StaleReport], boots: Mapping[str, LastReport]) -> None:
        """Log and count stale reports; tell workers to cancel the attempts that still run.

        `boots` are the incarnations that reported in this batch, by host.
        """
        await self.record(stale)
        for host_id, boot in boots.items():
            cancels = [
                CancelOperation(
                    operation_id=one.report.operation_id, epoch=one.report.epoch, reason="stale"
                )
                for one in stale
                if one.host_id == host_id and one.sender_still_works
            ]
            if cancels:
                await self._control.send(host_id, boot.incarnation, cancels=cancels)

    async def record(self, stale: Sequence[StaleReport]) -> None:
        """Append stale reports to the event log and count them by host and reason, each once.

        Not counted are a duplicate of a report that the log already has as a fact, and a report
        after which a later one of the same attempt is recorded already (`older`). The event is
        written before the count, so a crash between the two loses one count and nothing else.
        """
        for one in stale:
            _log_stale(one)
        stale = [one for one in stale if one.why != "older"]
        if not stale:
            return
        recorded = await self._store.events.hosts_of(fact_id(one.report) for one in stale)
        late = [one for one in stale if recorded.get(fact_id(one.report)) != one.host_id]
        events = [stale_event(one.report, one.host_id, one.why) for one in late]
        new = await self._event_log.record(events)
        await self._store.hosts.count_fenced_off(
            Counter(
                (one.host_id, one.why)
                for one, event in zip(late, events, strict=True)
                if event.event_id in new
            )
        )


def _log_stale(one: StaleReport) -> None:
    log.info(
        "report.stale",
        why=one.why,
        host_id=one.host_id,
        operation_id=one.report.operation_id,
        epoch=one.report.epoch,
        seq=one.report.seq,
        state=one.report.state,
    )
