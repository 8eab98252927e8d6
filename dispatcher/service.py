"""The dispatcher: wires its components and runs their loops until it is cancelled."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import structlog

from dispatcher.control import ControlPublisher
from dispatcher.enrolment import Enrolment
from dispatcher.events import EventLog
from dispatcher.intake.consumer import Intake, IntakeStages
from dispatcher.intake.decoder import MessageDecoder
from dispatcher.intake.first_pass import FirstPass
from dispatcher.intake.ordered_intake import OrderedIntake
from dispatcher.intake.overdue import OverdueOperations
from dispatcher.intake.positions import Positions
from dispatcher.intake.reader import JobsReader
from dispatcher.maintenance.cancels import Cancels
from dispatcher.maintenance.deadlines import Deadlines
from dispatcher.maintenance.drains import Drains
from dispatcher.maintenance.host_watch import HostWatch
from dispatcher.maintenance.lost_hosts import LostHosts
from dispatcher.maintenance.moves import Relocations
from dispatcher.maintenance.open_operations import OpenOperations
from dispatcher.maintenance.orphans import Orphans
from dispatcher.maintenance.reconciler import Reconciler
from dispatcher.maintenance.recovery import JobRestoration
from dispatcher.maintenance.reservation_leaks import ReservationLeaks
from dispatcher.maintenance.retries import Retries
from dispatcher.maintenance.sweep import Repair, Sweep
from dispatcher.reports.dead_letters import DeadLetterRecorder
from dispatcher.reports.fencing import Fencing
from dispatcher.reports.heartbeats import Heartbeats
from dispatcher.reports.recorder import Recorder
from dispatcher.reports.report_writer import ReportWriter
from dispatcher.scheduling.commands import CommandPublisher
from dispatcher.scheduling.fleet import Fleet
from dispatcher.scheduling.lines import Lines
from dispatcher.scheduling.scheduler import Scheduler
from dispatcher.senders import Senders
from dispatcher.settings import DispatcherSettings
from modelyard.broker import (
    Broker,
    Delivery,
    Subscription,
    backoff_s,
    consume_forever,
    send_to_dead_letters,
)
from modelyard.contract.errors import (
    BrokerUnavailableError,
    ErrorCode,
    ErrorInfo,
    StoreUnavailableError,
)
from modelyard.contract.topology import (
    DEAD_QUEUE,
    EXCHANGES,
    HEARTBEATS_QUEUE,
    JOBS_QUEUE,
    REPORTS_QUEUE,
    Queue,
)
from modelyard.process.body_process import BodyProcessEndedError, BodyProcessUnavailableError
from modelyard.process.tasks import TaskGroup, unending
from modelyard.store import Store

log = structlog.get_logger(__name__)

QUEUES = (JOBS_QUEUE, REPORTS_QUEUE, HEARTBEATS_QUEUE, DEAD_QUEUE)

READER_DEATHS_BEFORE_BURYING = 5
"""How often the body process may die or time out on one message before it is dead-lettered."""
MAX_BACKOFF_S = 30.0
"""Longest pause between two such tries: a machine that is out of memory gets time to recover."""

Handle = Callable[[Subscription, list[Delivery]], Awaitable[None]]


_UNAVAILABLE = (StoreUnavailableError, BrokerUnavailableError, BodyProcessUnavailableError)


class Dispatcher:
    """All components of one dispatcher; two dispatchers may share a broker and a database."""

    def __init__(self, settings: DispatcherSettings, store: Store, broker: Broker) -> None:
        self._settings = settings
        self._store = store
        self._broker = broker
        senders = Senders(
            broker.user,
            gateways=settings.dispatcher_gateway_users,
            workers=settings.dispatcher_worker_user,
        )
        self.event_log = event_log = EventLog(store, broker)
        commands = CommandPublisher(broker, default_timeout_s=settings.dispatcher_default_timeout_s)
        lines, fleet = Lines(store), Fleet(store)
        store.changes.listen(jobs=lines.forget, hosts=fleet.mark)
        self.scheduler = Scheduler(store, event_log, commands, lines=lines, fleet=fleet)
        control = ControlPublisher(broker)
        self.cancels = Cancels(store, event_log, self.scheduler, control)
        self._decoder = MessageDecoder()
        positions = Positions(store)
        overdue = OverdueOperations(store, broker, positions, self.scheduler.wake)
        self.intake = Intake(
            event_log,
            JobsReader(broker, senders, self._decoder),
            IntakeStages(
                FirstPass(
                    store, event_log, commands, lines=lines, fleet=fleet, positions=positions
                ),
                OrderedIntake(store, event_log, positions=positions, wake=self.scheduler.wake),
                overdue,
            ),
            wake=self.scheduler.wake,
            on_cancel=self.cancels.wake,
        )
        retries = Retries(
            store, event_log, self.scheduler, max_attempts=settings.dispatcher_max_attempts
        )
        reconciler = Reconciler(
            store,
            event_log,
            self.scheduler,
            control,
            retries,
            Orphans(
                grace_s=settings.dispatcher_orphan_grace_s,
                dry_run=settings.dispatcher_orphan_dry_run,
            ),
        )
        deadlines = Deadlines(
            store,
            broker,
            control,
            retries,
            default_timeout_s=settings.dispatcher_default_timeout_s,
        )
        fencing = Fencing(store, event_log, control)
        self.recorder = Recorder(
            broker,
            senders,
            event_log,
            writer=ReportWriter(store, event_log, self.scheduler, retries, fencing, lines),
            reconciler=reconciler,
            deadlines=deadlines,
        )
        lost = LostHosts(store, event_log, self.scheduler, control, retries)
        moves = Relocations(
            store,
            event_log,
            scheduler=self.scheduler,
            commands=commands,
            control=control,
            retries=retries,
        )
        drains = Drains(store, event_log, self.scheduler, control, retries)
        self.dead_letters = DeadLetterRecorder(
            store, senders, control=control, retries=retries, decoder=self._decoder
        )
        self.heartbeats = Heartbeats(
            store,
            broker,
            senders,
            control=control,
            enrolment=Enrolment(broker, control),
            lost=lost,
        )
        watch = HostWatch(store, broker, event_log, self.scheduler, lost)
        open_ones = OpenOperations(store, event_log, self.scheduler, commands, retries)
        restoration = JobRestoration(store, self.scheduler)
        # All periodic repairs, in the order of a round; docs/architecture.md says what each mends.
        repairs = (
            Repair("overdue", overdue.ask),
            Repair("expire", open_ones.expire),
            Repair("hosts", watch.watch),
            Repair("rested", open_ones.wake_after_backoff),
            Repair("cancel", self.cancels.carry_out),
            Repair("deadlines", deadlines.remind),
            Repair("bring_back", restoration.put_in_line),
            Repair("move", moves.go_on),
            Repair("drain", drains.check),
            Repair("publish", open_ones.publish_again),
            Repair("leaks", ReservationLeaks(store, self.scheduler).free),
            Repair("schedule", self.scheduler.schedule_next_page),
        )
        # While MongoDB is away no heartbeat is recorded, so silence proves nothing about a host.
        self.sweep = Sweep(repairs, on_failure=watch.restart_hearing)

    async def run(self) -> None:
        """Run until cancelled; raises as `prepare` does."""
        try:
            await self._run()
        finally:
            await self._decoder.close()

    async def _run(self) -> None:
        await self.prepare()
        async with TaskGroup() as group:
            for work in (
                self.event_log.run(),
                self.scheduler.run(),
                self.cancels.run(),
                self.sweep.run(interval_s=self._settings.dispatcher_sweep_interval_s),
                self._consume(JOBS_QUEUE, self.intake.handle, max_items=50),
                self._consume(REPORTS_QUEUE, self.recorder.handle, max_items=200),
                self._consume(DEAD_QUEUE, self.dead_letters.handle, max_items=50),
                self._consume(HEARTBEATS_QUEUE, self.heartbeats.handle, max_items=100),
            ):
                group.create_task(unending(work))
            self.scheduler.wake_waiting()
            log.info("dispatcher.ready")

    async def prepare(self) -> None:
        """Declare queues and indexes; wait for as long as RabbitMQ or MongoDB is unavailable.

        Raises `TopologyMismatchError` if the broker has a Modelyard queue with other arguments.
        """
        tries = 0
        while True:
            try:
                await self._declare()
                await self._store.prepare()
            except (BrokerUnavailableError, StoreUnavailableError) as error:
                tries += 1
                if tries == 1:
                    log.warning("dispatcher.waiting", error=str(error))
                await asyncio.sleep(backoff_s(tries))
            else:
                return

    async def _declare(self) -> None:
        await self._broker.declare(QUEUES, exchanges=EXCHANGES)

    async def _consume(self, queue: Queue, handle: Handle, *, max_items: int) -> None:
        await consume_forever(
            partial(self._broker.subscribe, queue, prefetch=max_items * 2),
            partial(self._handle_with_retries, handle, queue.name),
            name=queue.name,
            max_items=max_items,
            # An operator may have deleted the queue: declare it again before consuming.
            prepare=self._declare,
            first_alone=True,
        )

    async def _handle_with_retries(
        self, handle: Handle, name: str, subscription: Subscription, batch: list[Delivery]
    ) -> None:
        """Handle a batch; retry while MongoDB, RabbitMQ or the body process is unavailable.

        The deliveries stay unsettled meanwhile: RabbitMQ keeps them, and their delivery counts do
        not grow. A message on which the body process dies each time is dead-lettered in the end.
        """
        tries = reader_deaths = 0
        while True:
            try:
                await handle(subscription, batch)
            except _UNAVAILABLE as error:
                _raise_if_lost(subscription, error)
                tries += 1
                if tries == 1:
                    log.warning("dispatcher.waiting", queue=name, error=str(error))
                await asyncio.sleep(backoff_s(tries))
            except BodyProcessEndedError as error:
                _raise_if_lost(subscription, error)
                reader_deaths += 1
                if len(batch) > 1 or reader_deaths > READER_DEATHS_BEFORE_BURYING:
                    await self._one_by_one(handle, name, subscription, batch, error)
                    return
                log.warning("message.reader_ended", queue=name, error=str(error))
                await asyncio.sleep(backoff_s(reader_deaths, first_s=1.0, most_s=MAX_BACKOFF_S))
            except Exception as error:  # noqa: BLE001 - the boundary: no message may end the loop
                await self._one_by_one(handle, name, subscription, batch, error)
                return
            else:
                return

    async def _one_by_one(
        self,
        handle: Handle,
        name: str,
        subscription: Subscription,
        batch: list[Delivery],
        error: Exception,
    ) -> None:
        """Handle each message alone, so that only the one that fails is dead-lettered."""
        if len(batch) > 1:
            for delivery in batch:
                await self._handle_with_retries(handle, name, subscription, [delivery])
            return
        log.error("message.unforeseen", queue=name, exc_info=error)
        reason = ErrorInfo(code=ErrorCode.INTERNAL, message=f"Handling it failed: {error!r}"[:500])
        await send_to_dead_letters(self._broker, batch[0], reason, queue=name)
        await subscription.ack(batch)


def _raise_if_lost(subscription: Subscription, error: Exception) -> None:
    """Raise `BrokerUnavailableError` if the subscription is lost: it can't settle deliveries."""
    if subscription.is_lost:
        raise BrokerUnavailableError("The subscription was lost meanwhile.") from error
