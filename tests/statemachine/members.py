"""The processes: dispatchers, workers with their watchdogs, gateways, and a gateway's stand-in."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from dispatcher.service import Dispatcher
from dispatcher.settings import DispatcherSettings
from gateway.service import Gateway
from modelyard.contract.errors import BrokerUnavailableError, StoreUnavailableError
from modelyard.contract.message_types import CANCEL_TYPE, SUBMISSION_TYPE
from modelyard.contract.messages import CancelNotice, JobRequest, Submission
from modelyard.contract.topology import JOBS, LOST_AFTER_S, SUBMIT_KEY
from modelyard.scheduling.placement import PlacementPolicy
from modelyard.store.records import NewOperation, OperationRecord
from tests.fakes.broker import MemoryBroker
from tests.fakes.broker_links import Link
from tests.fakes.store import MemoryStore
from tests.statemachine.engine import EngineWay
from tests.statemachine.loop import Process, VirtualLoop
from tests.support.dispatcher.submitted import submitted_request
from worker.attempts.journal import AttemptJournal
from worker.model_server.client import ModelServer
from worker.service import Worker
from worker.session.lease import Lease
from worker.settings import DeclaredDevice, WorkerSettings
from worker.watchdog.process import Watchdog

if TYPE_CHECKING:
    from pathlib import Path

    from worker.engine.protocol import ContainerRuntime

WATCHDOG_LEASE_S = LOST_AFTER_S * 5 / 6
ANSWERED_WITHIN_S = 1.0
"""How long a gateway waits for either store."""


@dataclass(eq=False)
class Member:
    """One process, and its ways to the servers."""

    process: Process
    broker: MemoryBroker
    store: MemoryStore | None = None
    engine: EngineWay | None = None
    task: asyncio.Task[None] | None = None
    pipe: asyncio.StreamReader | None = None
    """A worker's to its watchdog."""
    alive: bool = True
    links: list[Link] = field(default_factory=list)
    journal: AttemptJournal | None = None
    """A worker's; the file outlives it."""

    @property
    def frozen(self) -> bool:
        """True while none of it is run, and it is not dead."""
        return self.alive and self.process.held_back

    def kill(self) -> None:
        """End it where it stands: nothing of it runs any more, and its connections close."""
        self.alive = False
        self.process.held_back = True
        for link in self.links:
            link.up = False
        if self.engine is not None:
            self.engine.up = False
        self.broker.cut()
        if self.journal is not None:
            self.journal.close()
        if self.pipe is not None:
            self.pipe.feed_eof()


def run_dispatcher(
    loop: VirtualLoop, process: Process, store: MemoryStore, broker: MemoryBroker
) -> Member:
    """Begin a dispatcher."""
    settings = DispatcherSettings(
        dispatcher_orphan_grace_s=20.0,
        dispatcher_default_timeout_s=90.0,
        dispatcher_placement=PlacementPolicy.SPREAD,
    )
    member = Member(process, broker, store, links=[store.link, broker.link])

    async def work() -> None:
        await Dispatcher(settings, store, broker).run()

    member.task = loop.start(process, work())
    return member


def run_worker(
    loop: VirtualLoop,
    process: Process,
    way: EngineWay,
    broker: MemoryBroker,
    *,
    slots: int,
    devices: tuple[DeclaredDevice, ...],
) -> Member:
    """Begin a worker and its watchdog, which outlives it."""
    host_id = way.engine.host_id
    runtime = cast("ContainerRuntime", way)
    member = Member(process, broker, engine=way, links=[broker.link])
    settings = WorkerSettings(
        host_id=host_id,
        worker_slots=slots,
        worker_devices=devices,
        worker_allowed_images=("*",),
        worker_allowed_volumes=("*",),
    )
    pipe = asyncio.StreamReader(loop=loop)
    member.pipe = pipe
    journal = member.journal = AttemptJournal(way.engine.journal_file)

    def on_renewal(at: float) -> None:
        pipe.feed_data(f"{at}\n".encode())

    async def work() -> None:
        server = ModelServer(way.engine.model_servers)
        service = Worker(
            settings,
            broker=broker,
            runtime=runtime,
            server=server,
            journal=journal,
            new_lease=partial(Lease, on_renewal=on_renewal),
        )
        await service.run(asyncio.Event())

    watchdog = Watchdog(
        cast("ContainerRuntime", way.engine),
        lease_s=WATCHDOG_LEASE_S,
        patience_s=600.0,
        lease_file=cast("Path", way.engine.note),
        clock=loop.time,
    )
    loop.serve(watchdog.run(pipe))
    member.task = loop.start(process, work())
    return member


def run_gateway(
    loop: VirtualLoop, process: Process, store: MemoryStore, broker: MemoryBroker
) -> tuple[Member, Gateway]:
    """Begin a gateway; return it once it hears of events."""
    gateway = Gateway(store, broker)
    member = Member(process, broker, store, links=[store.link, broker.link])
    member.task = loop.start(process, gateway.run())
    loop.run(gateway.waiters.attached.wait())
    return member, gateway


class FrontDoor:
    """Takes requests as a gateway does: into the record and onto the queue at the same time."""

    def __init__(self, store: MemoryStore, broker: MemoryBroker) -> None:
        self.store = store
        self.broker = broker

    async def submit(
        self, operation_id: str, request: JobRequest, *, retry_of: str | None = None
    ) -> bool:
        """Return whether it was accepted; else it is unknown if it was taken."""
        new = NewOperation.of(operation_id, request, "http", retry_of=retry_of)
        (operation,) = self.store.operations.accepted_now([new])
        submitted = submitted_request(operation, request)
        body = Submission(requests=(submitted,)).model_dump_json(exclude_defaults=True).encode()
        recorded, published = await asyncio.gather(
            _confirmed(self._record(operation)),
            _confirmed(self.broker.publish(JOBS, SUBMIT_KEY, body, message_type=SUBMISSION_TYPE)),
        )
        if recorded and not published:
            return await _confirmed(self.store.operations.mark_unpublished([operation_id]))
        return published

    async def publish_raw(self, body: bytes, key: str | None) -> bool:
        """Publish as any service does; return whether it was confirmed."""
        return await _confirmed(self.broker.publish(JOBS, SUBMIT_KEY, body, message_id=key))

    async def cancel(self, operation_id: str) -> None:
        """Record the wish, and tell of it if it was recorded."""
        if await _confirmed(self.store.operations.request_cancel(operation_id)):
            wish = CancelNotice(operation_ids=(operation_id,)).model_dump_json().encode()
            await _confirmed(self.broker.publish(JOBS, SUBMIT_KEY, wish, message_type=CANCEL_TYPE))

    async def find(self, operation_id: str) -> OperationRecord | None:
        """Return an operation with its input, if the database says so now."""
        found: list[OperationRecord | None] = []

        async def look() -> None:
            found.append(await self.store.operation_queries.with_input(operation_id))

        await _confirmed(look())
        return found[0] if found else None

    async def tell_hosts(self, tell: Callable[[MemoryStore], Coroutine[Any, Any, object]]) -> None:
        """Do something to a host's record."""
        await _confirmed(tell(self.store))

    async def _record(self, operation: NewOperation) -> None:
        await asyncio.gather(
            self.store.operations.record([operation]),
            self.store.jobs.ensure([operation.job_id] if operation.job_id else []),
        )


async def _confirmed(work: Coroutine[Any, Any, object]) -> bool:
    try:
        async with asyncio.timeout(ANSWERED_WITHIN_S):
            await work
    except (StoreUnavailableError, BrokerUnavailableError, TimeoutError):
        return False
    return True
