"""Two leaders over one store in memory: a test hands them each message and lets time pass."""

import asyncio
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any, cast

from prometheus_client import CollectorRegistry

from dispatcher.leadership import Term
from dispatcher.metrics import DispatcherMetrics
from dispatcher.service import Dispatcher, Leader
from dispatcher.settings import DispatcherSettings
from modelyard.broker import Delivery, Subscription
from modelyard.contract.catalog.entries import ModelSpec
from modelyard.contract.message_types import SUBMISSION_TYPE
from modelyard.contract.messages import (
    EngineFacts,
    HostOnline,
    JobRequest,
    Message,
    Submission,
    SubmittedRequest,
    WorkerReports,
)
from modelyard.contract.states import OperationState
from modelyard.contract.topology import host_queue
from modelyard.store.records import Document, OperationRecord
from tests.fakes.broker import MemoryBroker, MemoryRabbit
from tests.fakes.broker_links import Link
from tests.fakes.mongodb import MemoryDatabase
from tests.fakes.store import MemoryStore

HOST = "h1"
INCARNATION = "boot-1"
ENDLESS = float("inf")
STEP_S = 100.0
"""Longer than an operation rests after an attempt that failed."""


class _Acked:
    """Stands for the subscription that a batch came by."""

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Settle nothing: the messages come from no queue."""


class Frost:
    """Lets a dispatcher come so far, and no further before it thaws."""

    def __init__(self) -> None:
        self.calls: int | None = None
        """How many times it goes to the database or comes back from there; None: for ever."""
        self.thawed = asyncio.Event()

    async def pause(self) -> None:
        """Stand on the way to the database and back."""
        await asyncio.sleep(0)
        if self.calls is not None:
            self.calls -= 1
            if self.calls < 0:
                await self.thawed.wait()


class Recording:
    """The record, and two leaders that write it. Time stands still within a step.

    The other one stands for a dispatcher whose term is over, and which finishes what it was at.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self.database = MemoryDatabase(lambda: self._seconds)
        self.database.watchers.append(self._watch)
        self.wrong: list[str] = []
        """What was written and may never be."""
        self._broker = MemoryBroker(MemoryRabbit(), name="recording")
        self._store = MemoryStore(self.database)
        settings = DispatcherSettings()
        self._leader = Leader(
            settings,
            self._store,
            self._broker,
            Term(2, ENDLESS),
            DispatcherMetrics(CollectorRegistry()),
        )
        self._frost = Frost()
        slow = MemoryStore(self.database, link=Link(pause=self._frost.pause))
        self._other = Leader(
            settings, slow, self._broker, Term(1, ENDLESS), DispatcherMetrics(CollectorRegistry())
        )
        self._frozen: asyncio.Task[None] | None = None
        self._subscription = cast("Subscription", _Acked())
        self._publishing: set[asyncio.Task[None]] = set()

    async def begin(self, model: ModelSpec, *, slots: int) -> None:
        """Put the model into the catalog and have the host come online."""
        for leader in (self._leader, self._other):
            self._publishing.add(asyncio.create_task(leader.event_log.run()))
        await Dispatcher(DispatcherSettings(), self._store, self._broker).prepare()
        await self._broker.declare([host_queue(HOST)])
        await self._store.models.put(model)
        engine = EngineFacts(version="20.10", api_version="1.41")
        online = HostOnline(slots=slots, engine=engine)
        await self.told([WorkerReports(host_id=HOST, incarnation=INCARNATION, online=online)])

    async def step(self, requests: Iterable[tuple[str, JobRequest]]) -> list[OperationRecord]:
        """Let time pass, take requests in, and return what the host has in hand then."""
        self._seconds += STEP_S
        asked = tuple(
            SubmittedRequest(operation_id=key, request=request) for key, request in requests
        )
        if asked:
            submission = _delivery(Submission(requests=asked), SUBMISSION_TYPE)
            await self._leader.intake.handle(self._subscription, [submission])
        await self._store.operations.wake_after_backoff(limit=100)
        await self._leader.scheduler.schedule_next_page()
        given = await self._store.operation_queries.on_host(HOST)
        assert all(one.state is OperationState.DISPATCHED for one in given)
        return sorted(given, key=lambda one: one.operation_id)

    async def told(self, batch: Sequence[WorkerReports]) -> None:
        """Have the recorder handle a batch of messages."""
        await self._leader.recorder.handle(self._subscription, _deliveries(batch))

    @property
    def is_frozen(self) -> bool:
        """True while the other leader has something in hand."""
        return self._frozen is not None

    async def freeze(self, batch: Sequence[WorkerReports], *, calls: int) -> None:
        """Have the other leader begin with a batch, and freeze it on its way."""
        self._frost.calls = calls
        self._frost.thawed.clear()
        work = self._other.recorder.handle(self._subscription, _deliveries(batch))
        self._frozen = asyncio.create_task(work)
        for _ in range(2 * calls + 2):
            await asyncio.sleep(0)

    async def thaw(self) -> None:
        """Let the other leader do the rest of what it has in hand."""
        self._frost.thawed.set()
        if self._frozen is not None:
            await self._frozen
        self._frozen = None

    def documents(self, collection: str, *without: str) -> dict[str, Document]:
        """Return the documents of a collection without some of their fields."""
        return {
            one["_id"]: {key: value for key, value in one.items() if key not in without}
            for one in self.database.documents(collection)
        }

    def _watch(self, collection: str, before: Document | None, after: Document) -> None:
        """Look that attempts and their reports only go forward, and that an end stays."""
        if collection != "operations" or before is None:
            return
        if (after["epoch"], after["seq"]) < (before["epoch"], before["seq"]):
            self.wrong.append(f"{before} went back to {after}")
        if OperationState(before["state"]).terminal and after != before:
            self.wrong.append(f"{before} ended and became {after}")


def _deliveries(batch: Sequence[WorkerReports]) -> list[Delivery]:
    return [_delivery(one, "modelyard.reports.v1", routing_key=one.host_id) for one in batch]


def _delivery(message: Message, kind: str, *, routing_key: str = "") -> Delivery:
    body = message.model_dump_json(exclude_defaults=kind == SUBMISSION_TYPE).encode()
    raw: Any = SimpleNamespace()
    return Delivery(
        body=body,
        message_id=None,
        type=kind,
        routing_key=routing_key,
        redelivered=False,
        headers={},
        user_id="guest",
        raw=raw,
    )
