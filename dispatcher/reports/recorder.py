"""The recorder: takes the workers' reports in their order, and has each part of them handled.

A message may say that a host came online, what became of operations, and which containers the host
has. Each of these is compared with everything that was reported before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from dispatcher.events import EventLog
from dispatcher.maintenance.deadlines import Deadlines
from dispatcher.maintenance.reconciler import BootReport, InventoryReport, Reconciler
from dispatcher.reports.decode import Prompt, read_reports
from dispatcher.reports.fencing import latest
from dispatcher.reports.report_writer import ReportWriter
from dispatcher.reports.transfers import Transfers
from dispatcher.senders import Senders
from modelyard.broker import Broker, Delivery, Subscription
from modelyard.contract.content.transfers import WorkerTransfer
from modelyard.contract.messages import OperationReport, WorkerReports
from modelyard.process.crash_points import crash_point
from modelyard.store.records import LastReport


@dataclass(slots=True)
class _Unrecorded:
    """Reports of a batch that were read and are not recorded yet."""

    reports: list[tuple[str, OperationReport]] = field(default_factory=list)
    """Host and report, in the order of arrival."""
    senders: dict[str, LastReport] = field(default_factory=dict)
    """By host: the incarnation that reported, and the number of its last message."""
    inventories: list[InventoryReport] = field(default_factory=list)
    """At most one of each host; they are compared with all reports of the batch, later ones too."""


class Recorder:
    """Records the messages of `modelyard.reports.v1`."""

    def __init__(  # noqa: PLR0913 - one part for each kind of message
        self,
        broker: Broker,
        senders: Senders,
        event_log: EventLog,
        *,
        writer: ReportWriter,
        reconciler: Reconciler,
        deadlines: Deadlines,
        transfers: Transfers,
    ) -> None:
        self._broker = broker
        self._senders = senders
        self._event_log = event_log
        self._writer = writer
        self._reconciler = reconciler
        self._deadlines = deadlines
        self._transfers = transfers

    async def handle(self, subscription: Subscription, batch: list[Delivery]) -> None:
        """Record a batch; it is settled once its events are published.

        Raises `StoreUnavailableError` or `BrokerUnavailableError`; nothing is settled then.
        """
        messages = [await read_reports(self._broker, self._senders, delivery) for delivery in batch]
        newest = {
            one.host_id: one
            for one in messages
            if isinstance(one, WorkerReports) and one.inventory is not None
        }
        unrecorded = _Unrecorded()
        for message in messages:
            if message is Prompt.OVERDUE:
                await self._barrier(unrecorded)
                await self._deadlines.enforce()
            elif isinstance(message, WorkerTransfer):
                await self._transfers.answer(message)
            elif message is not None:
                is_newest = newest.get(message.host_id) is message
                await self._take(message, unrecorded, with_inventory=is_newest)
        await self._barrier(unrecorded)
        self._event_log.then(partial(self._ack, subscription, batch))

    async def _ack(self, subscription: Subscription, batch: Sequence[Delivery]) -> None:
        crash_point("dispatcher.recorder.before_ack")
        await subscription.ack(batch)

    async def _take(
        self, message: WorkerReports, unrecorded: _Unrecorded, *, with_inventory: bool
    ) -> None:
        """Handle one message; only the newest of a host's inventories in a batch still matters."""
        host_id, incarnation, number = message.host_id, message.incarnation, message.number
        if message.online is not None:
            await self._barrier(unrecorded)
            boot = BootReport(host_id, incarnation, message.online, number)
            await self._reconciler.handle_boot(boot)
        unrecorded.senders[host_id] = LastReport(incarnation=incarnation, number=number)
        unrecorded.reports += [(host_id, report) for report in message.operations]
        if message.inventory is not None and with_inventory:
            unrecorded.inventories.append(
                InventoryReport(host_id, incarnation, message.inventory, number)
            )

    async def _barrier(self, unrecorded: _Unrecorded) -> None:
        """Record everything that was reported so far, so that what comes next can rely on it."""
        reports, unrecorded.reports = unrecorded.reports, []
        await self._writer.write(latest(reports), unrecorded.senders)
        inventories, unrecorded.inventories = unrecorded.inventories, []
        if inventories:
            await self._reconciler.handle_inventories(inventories)
