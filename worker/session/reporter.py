"""Publishes reports to the dispatcher: all waiting ones in one message, until it is confirmed.

Reports are kept in memory only. If the worker ends before it has delivered them, the dispatcher's
sweep repairs what is missing.
"""

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import structlog

from modelyard.broker import backoff_s
from modelyard.contract.errors import BrokerUnavailableError
from modelyard.contract.messages import (
    MAX_MESSAGE_BYTES,
    Inventory,
    OperationReport,
    WorkerReports,
)
from modelyard.process.batching import chunks_by_size
from worker.session.host_channel import HostChannel

log = structlog.get_logger(__name__)

MAX_REPORTS = 1_000
REDECLARE_EVERY = 3
"""Failures in a row after which a dispatcher is asked to declare queue and binding again."""

_Key = tuple[str, int]


class Reporter:
    """Publishes the reports of an attempt in order, and tries again until they are confirmed.

    A report carries the full state of its attempt, so only the newest one of an attempt waits; it
    replaces an older one.
    """

    def __init__(
        self,
        channel: HostChannel,
        *,
        backoff: Callable[[int], float] = backoff_s,
    ) -> None:
        self._channel = channel
        self._backoff = backoff
        self.on_confirmed: Callable[[Sequence[OperationReport]], None] = lambda _: None
        """Called with the reports of each message that the broker has confirmed."""
        self._stuck_since: float | None = None
        self._waiting: OrderedDict[_Key, OperationReport] = OrderedDict()
        self._work_waiting = asyncio.Event()
        self._confirmed = asyncio.Condition()
        self._in_flight: frozenset[_Key] = frozenset()
        self._number = 0
        self._inventory: Inventory | None = None
        self._before_inventory: frozenset[_Key] = frozenset()
        """Keys of the reports that were waiting when the inventory came; they go before it."""

    @property
    def stuck_s(self) -> float:
        """Seconds for which reports have been waiting without any confirmation."""
        return 0.0 if self._stuck_since is None else time.monotonic() - self._stuck_since

    @property
    def waiting(self) -> int:
        """How many reports the broker has not confirmed yet."""
        return len(self._unconfirmed())

    def put(self, report: OperationReport) -> None:
        """Queue a report; it replaces an older one of the same attempt that still waits."""
        key = _key(report)
        waiting = self._waiting.get(key)
        if waiting is None or waiting.seq <= report.seq:
            self._waiting[key] = report
        self._work_waiting.set()
        if self._stuck_since is None:
            self._stuck_since = time.monotonic()

    def put_inventory(self, inventory: Inventory) -> None:
        """Queue an inventory, after all reports that wait now and before all later ones.

        If its message can't be published the inventory is dropped, because sent later it would be
        out of order. A newer inventory replaces one that still waits.
        """
        self._inventory = inventory
        self._before_inventory = self._unconfirmed()
        self._work_waiting.set()

    async def run(self) -> None:
        """Publish until cancelled; the caller runs this as a task."""
        failures = 0
        while True:
            await self._work_waiting.wait()
            chunk = self._take_chunk()
            inventory = None if chunk else self._take_inventory()
            if not chunk and inventory is None:
                continue
            try:
                await self._publish([text for _, text in chunk], inventory)
            except BrokerUnavailableError as error:
                self._inventory = None
                failures += 1
                if failures == 1:
                    log.warning("reports.waiting", error=str(error))
                self._put_back([report for report, _ in chunk])
                await asyncio.sleep(self._backoff(failures))
                if failures % REDECLARE_EVERY == 0:
                    await self._ask_to_redeclare()
            else:
                if failures:
                    log.info("reports.flowing", after_failures=failures)
                failures = 0
                self._in_flight = frozenset()
                self._stuck_since = time.monotonic() if self._waiting else None
                self.on_confirmed([report for report, _ in chunk])
                async with self._confirmed:
                    self._confirmed.notify_all()

    async def deliver(self, reports: Sequence[OperationReport]) -> None:
        """Queue these reports; return once the broker has confirmed them, without a time limit."""
        for report in reports:
            self.put(report)
        keys = {_key(report) for report in reports}
        async with self._confirmed:
            await self._confirmed.wait_for(lambda: not keys & self._unconfirmed())

    async def drain(self, seconds: float) -> bool:
        """Wait until all reports are confirmed; return false if some are not after `seconds`."""
        try:
            async with asyncio.timeout(seconds), self._confirmed:
                await self._confirmed.wait_for(lambda: not self._unconfirmed())
        except TimeoutError:
            return False
        return True

    async def _ask_to_redeclare(self) -> None:
        try:
            await self._channel.say_hello()
        except BrokerUnavailableError as error:
            log.debug("reports.way_not_asked_for", error=str(error))

    def _unconfirmed(self) -> frozenset[_Key]:
        return self._in_flight | self._waiting.keys()

    def _take_chunk(self) -> list[tuple[OperationReport, str]]:
        """Take as many waiting reports as fit into one message."""
        has_inventory = self._inventory is not None
        encoded = (
            (report, report.model_dump_json())
            for key, report in self._waiting.items()
            if not has_inventory or key in self._before_inventory
        )
        chunk = next(
            chunks_by_size(
                encoded,
                lambda item: len(item[1].encode()),
                max_bytes=MAX_MESSAGE_BYTES,
                max_items=MAX_REPORTS,
            ),
            [],
        )
        for report, _ in chunk:
            del self._waiting[_key(report)]
        self._clear_if_idle()
        self._in_flight = frozenset(_key(report) for report, _ in chunk)
        return chunk

    def _take_inventory(self) -> Inventory | None:
        inventory, self._inventory = self._inventory, None
        self._clear_if_idle()
        return inventory

    def _clear_if_idle(self) -> None:
        if not self._waiting and self._inventory is None:
            self._work_waiting.clear()

    def _put_back(self, reports: Sequence[OperationReport]) -> None:
        """Put unconfirmed reports back at the front, except where a newer report waits already."""
        self._in_flight = frozenset()
        for report in reversed(reports):
            if _key(report) not in self._waiting:
                self._waiting[_key(report)] = report
                self._waiting.move_to_end(_key(report), last=False)
        self._work_waiting.set()

    async def _publish(self, reports: Sequence[str], inventory: Inventory | None) -> None:
        self._number += 1  # for a repetition too: it carries the state of that moment
        head = WorkerReports(
            host_id=self._channel.host_id,
            incarnation=self._channel.incarnation,
            number=self._number,
            inventory=inventory,
        )
        fields = head.model_dump(mode="json", exclude={"operations"})
        # Each report is JSON text already, because its size had to be known.
        body = f'{json.dumps(fields)[:-1]}, "operations": [{",".join(reports)}]}}'
        await self._channel.publish_reports(body.encode())


def _key(report: OperationReport) -> _Key:
    return (report.operation_id, report.epoch)
