"""Fences: which reports are taken, and what becomes of those that come too late."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from dispatcher.control import ControlPublisher
from dispatcher.events import EventLog, fact_id, stale_event
from modelyard.contract.messages import CancelOperation, OperationReport
from modelyard.contract.states import OperationState, operation_sources
from modelyard.store import Store
from modelyard.store.operation_writes import GIVEN_STATES
from modelyard.store.records import LastReport, OperationRecord

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StaleReport:
    """A report that did not pass the fences."""

    host_id: str
    report: OperationReport
    why: str

    @property
    def ghost(self) -> bool:
        """True if its sender works on what is not its own any more."""
        return not self.report.state.terminal and self.why != "older"


@dataclass(frozen=True, slots=True)
class CurrentReport:
    """A report that passed the fences, with the operation as it was."""

    report: OperationReport
    operation: OperationRecord
    told: LastReport | None = None
    """The message that it came with, or a later one of the same boot that was read with it."""

    @property
    def new(self) -> bool:
        """False if it is recorded already, and only repairs what a crash left half done."""
        return self.report.seq > self.operation.seq


def latest(reports: Iterable[tuple[str, OperationReport]]) -> list[tuple[str, OperationReport]]:
    """Keep the newest report of each operation from each host: each one carries full state."""
    kept: dict[tuple[str, str], OperationReport] = {}
    for host_id, report in reports:
        held = kept.get((host_id, report.operation_id))
        if held is None or (held.epoch, held.seq) < (report.epoch, report.seq):
            kept[host_id, report.operation_id] = report
    return [(host_id, report) for (host_id, _), report in kept.items()]


def fence(
    host_id: str, report: OperationReport, operation: OperationRecord | None
) -> CurrentReport | str:
    """Return the report as accepted, or the word for why it is stale."""
    if operation is None:
        return "unknown_operation"
    for differs, why in (
        (operation.host_id != host_id, "other_host"),
        (operation.epoch != report.epoch, "other_epoch"),
        (operation.job_id != report.job_id, "other_job"),
        (operation.generation not in (None, report.generation), "other_job"),
    ):
        if differs:
            return why
    made_again = operation.state is OperationState.QUEUED and report.state.terminal
    if report.seq < operation.seq or (made_again and report.seq == operation.seq):
        return "older"
    repeated = report.seq == operation.seq and report.state == operation.state
    if repeated or operation.state in operation_sources(report.state) & GIVEN_STATES:
        return CurrentReport(report, operation)
    return "illegal"


class Fencing:
    """Notes and counts what came too late."""

    def __init__(self, store: Store, event_log: EventLog, control: ControlPublisher) -> None:
        self._store = store
        self._event_log = event_log
        self._control = control

    async def keep_off(self, stale: Sequence[StaleReport], boots: Mapping[str, LastReport]) -> None:
        """Keep and count what came too late; tell whoever still works on it to stop."""
        await self.record(stale)
        for host_id, boot in boots.items():
            futile = [
                CancelOperation(
                    operation_id=one.report.operation_id, epoch=one.report.epoch, reason="stale"
                )
                for one in stale
                if one.host_id == host_id and one.ghost
            ]
            if futile:
                await self._control.send(host_id, boot.incarnation, cancels=futile)

    async def record(self, stale: Sequence[StaleReport]) -> None:
        """Note in the log what came too late, and count it by host and reason: each report once.

        What a host has told before and the log has as a fact is not late, it only came twice; nor
        is what the same attempt has gone on from. The note goes first, so a crash before the count
        loses that count and nothing else.
        """
        for one in stale:
            _log_stale(one)
        stale = [one for one in stale if one.why != "older"]
        if not stale:
            return
        told = await self._store.events.hosts_of(fact_id(one.report) for one in stale)
        late = [one for one in stale if told.get(fact_id(one.report)) != one.host_id]
        notes = [stale_event(one.report, one.host_id, one.why) for one in late]
        new = await self._event_log.record(notes)
        await self._store.hosts.count_fenced_off(
            Counter(
                (one.host_id, one.why)
                for one, note in zip(late, notes, strict=True)
                if note.event_id in new
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
