"""The dispatcher: stands by or leads; the leader's components and their loops."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import structlog
from prometheus_client import CollectorRegistry

from dispatcher.control import ControlPublisher
from dispatcher.enrolment import Enrolment
from dispatcher.events import EventLog
from dispatcher.gauges import LeaderGauges
from dispatcher.intake.consumer import Intake, IntakeStages
from dispatcher.intake.decoder import MessageDecoder
from dispatcher.intake.first_pass import FirstPass
from dispatcher.intake.ordered_intake import OrderedIntake
from dispatcher.intake.overdue import OverdueOperations
from dispatcher.intake.positions import Positions
from dispatcher.intake.reader import JobsReader
from dispatcher.leadership import Leadership, NotLeadingError, Term
from dispatcher.maintenance.cancels import Cancels
from dispatcher.maintenance.deadlines import Deadlines
from dispatcher.maintenance.drains import Drains
from dispatcher.maintenance.host_watch import HostWatch
from dispatcher.maintenance.idle_unloads import IdleUnloads
from dispatcher.maintenance.lost_hosts import LostHosts
from dispatcher.maintenance.moves import Relocations
from dispatcher.maintenance.open_operations import OpenOperations
from dispatcher.maintenance.orphans import Orphans
from dispatcher.maintenance.reconciler import Reconciler
from dispatcher.maintenance.recovery import JobRestoration
from dispatcher.maintenance.reservation_leaks import ReservationLeaks
from dispatcher.maintenance.retention.orphaned_content import OrphanedContent
from dispatcher.maintenance.retention.retention import KeptDays, Retention
from dispatcher.maintenance.retention.unborn_jobs import UnbornJobs
from dispatcher.maintenance.retries import Retries
from dispatcher.maintenance.sweep import Repair, Sweep
from dispatcher.metrics import DispatcherMetrics
from dispatcher.reports.beat_writer import BeatWriter
from dispatcher.reports.dead_letters import DeadLetterRecorder
from dispatcher.reports.fencing import Fencing
from dispatcher.reports.heartbeats import Heartbeats
from dispatcher.reports.recorder import Recorder
from dispatcher.reports.report_writer import ReportWriter
from dispatcher.reports.transfers import Transfers
from dispatcher.scheduling.commands import CommandPublisher
from dispatcher.scheduling.fleet import Fleet
from dispatcher.scheduling.footprints import LearnedFootprints
from dispatcher.scheduling.grown_residents import GrownResidents
from dispatcher.scheduling.lines import Lines
from dispatcher.scheduling.memory import Memory
from dispatcher.scheduling.residency import Residents
from dispatcher.scheduling.scheduler import Scheduler
from dispatcher.scheduling.waiting import WaitingOperations
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
from modelyard.process.addresses import OFF
from modelyard.process.body_process import BodyProcessEndedError, BodyProcessUnavailableError
from modelyard.process.health.file import HealthFile
from modelyard.process.tasks import TaskGroup, unending
from modelyard.scheduling.placement import PLACEMENT_NOTE
from modelyard.store import Store

log = structlog.get_logger(__name__)

QUEUES = (JOBS_QUEUE, REPORTS_QUEUE, HEARTBEATS_QUEUE, DEAD_QUEUE)

READER_DEATHS_BEFORE_BURYING = 5
"""How often the body process may die or time out on one message before it is dead-lettered."""
MAX_BACKOFF_S = 30.0
"""Longest pause between two such tries: a machine that is out of memory gets time to recover."""

BROKER_AWAY_S = 10.0
"""Seconds without any subscription after which a leader lets another dispatcher lead: RabbitMQ may
be out of reach for this one alone."""

Handle = Callable[[Subscription, list[Delivery]], Awaitable[None]]


_UNAVAILABLE = (StoreUnavailableError, BrokerUnavailableError, BodyProcessUnavailableError)


class Dispatcher:
    """One of several dispatchers on a broker and a database: a `Leader` for the terms it leads."""

    def __init__(
        self,
        settings: DispatcherSettings,
        store: Store,
        broker: Broker,
        metrics: DispatcherMetrics | None = None,
        *,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        """Without `metrics` what is counted is not to be seen.

        `on_ready` is called whenever both servers are ready for it: it leads or stands by.
        """
        self._metrics = metrics or DispatcherMetrics(CollectorRegistry())
        self._settings = settings
        self._store = store
        self._broker = broker
        self._on_ready = on_ready
        self._health = HealthFile(settings.health_file)

    async def run(self) -> None:
        """Stand by or lead until cancelled; raises as `prepare` does."""
        notes = {PLACEMENT_NOTE: self._settings.dispatcher_placement}
        leadership = Leadership(self._store.leases, notes=notes, on_answer=self._health.beat)
        while True:
            await self.prepare()  # whoever can't reach both servers does not ask for the lease
            log.info("dispatcher.ready")
            self._on_ready()
            await leadership.lead(self._lead)

    async def prepare(self) -> None:
        """Declare queues and indexes; wait for as long as RabbitMQ or MongoDB is unavailable.

        Raises `TopologyMismatchError` if the broker has a Modelyard queue with other arguments.
        """
        tries = 0
        while True:
            try:
                await _declare(self._broker)
                await self._store.prepare()
            except (BrokerUnavailableError, StoreUnavailableError) as error:
                tries += 1
                if tries == 1:
                    log.warning("dispatcher.waiting", error=str(error))
                await asyncio.sleep(backoff_s(tries))
            else:
                return

    async def _lead(self, term: Term) -> None:
        await Leader(self._settings, self._store, self._broker, term, self._metrics).run()


class Leader:
    """All components of the leading dispatcher, for one term: nothing in memory outlives it."""

    def __init__(
        self,
        settings: DispatcherSettings,
        store: Store,
        broker: Broker,
        term: Term,
        metrics: DispatcherMetrics,
    ) -> None:
        self._metrics = metrics
        self._settings = settings
        self._broker = broker
        self._term = term
        self._subscribed: set[str] = set()
        senders = Senders(
            broker.user,
            gateways=settings.dispatcher_gateway_users,
            workers=settings.dispatcher_worker_user,
        )
        self.event_log = event_log = EventLog(store, broker, term, metrics)
        commands = CommandPublisher(
            broker, term, default_timeout_s=settings.dispatcher_default_timeout_s
        )
        lines, fleet = Lines(store), Fleet(store, policy=settings.dispatcher_placement)
        memory = Memory(lines, fleet, LearnedFootprints(store))
        self._stop_listening = store.changes.listen(jobs=lines.forget, hosts=fleet.mark)
        residency = Residents(store, memory, swap_wait_s=settings.dispatcher_swap_wait_s)
        self.scheduler = Scheduler(
            store, event_log, commands, term, memory=memory, residency=residency
        )
        control = ControlPublisher(broker)
        self.cancels = Cancels(store, event_log, self.scheduler, control)
        self._decoder = MessageDecoder()
        positions = Positions(store, term)
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
        orphans = Orphans(
            grace_s=settings.dispatcher_orphan_grace_s,
            dry_run=settings.dispatcher_orphan_dry_run,
        )
        reconciler = Reconciler(
            store,
            event_log,
            self.scheduler,
            control,
            retries,
            orphans,
        )
        fleet.when_gone(reconciler.forget)
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
            writer=ReportWriter(store, event_log, self.scheduler, retries, fencing, memory),
            reconciler=reconciler,
            deadlines=deadlines,
            transfers=Transfers(store, control),
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
            store, senders, control=control, retries=retries, decoder=self._decoder, metrics=metrics
        )
        self._enrolment = Enrolment(broker, control)
        beats = BeatWriter(store, event_log, self.scheduler)
        fleet.when_gone(beats.forget)
        self.heartbeats = Heartbeats(
            beats,
            broker,
            senders,
            control=control,
            enrolment=self._enrolment,
            lost=lost,
        )
        watch = HostWatch(store, broker, event_log, self.scheduler, lost)
        open_ones = OpenOperations(store, event_log, self.scheduler, commands, retries)
        restoration = JobRestoration(store, self.scheduler)
        self._idle_unloads = IdleUnloads(store, self.scheduler, term, lines)
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
            Repair("leaks", ReservationLeaks(store, self.scheduler, lines).free),
            Repair("memory", lines.verify),
            Repair("unborn", UnbornJobs(store).delete),
            Repair("footprints", GrownResidents(store, memory).raise_held),
            Repair("orphaned_content", OrphanedContent(store).remove),
            Repair("schedule", self.scheduler.schedule_next_page),
        )
        kept = KeptDays(
            operations=settings.dispatcher_keep_operations_days,
            results=settings.dispatcher_keep_results_days,
            events=settings.dispatcher_keep_events_days,
            dead_letters=settings.dispatcher_keep_dead_letters_days,
        )
        self._retention = Retention(store, term, kept)
        self._waiting = WaitingOperations(store)
        self._gauges = LeaderGauges(fleet, orphans, self._waiting, lambda: store.known_time)
        # While MongoDB is away no heartbeat is recorded, so silence proves nothing about a host.
        self.sweep = Sweep(repairs, term, metrics, on_failure=watch.restart_hearing)

    async def run(self) -> None:
        """Run all loops until cancelled; raises `NotLeadingError` if one finds the term over."""
        not_leading = self._metrics.lead(self._term.number, self._gauges.collect)
        try:
            await self._run()
        finally:
            not_leading()
            self._stop_listening()
            await self._decoder.close()

    async def _count_waiting(self) -> None:
        """Count what waits, if anybody can scrape it."""
        if self._settings.dispatcher_metrics_address == OFF:
            await asyncio.Event().wait()
        await self._waiting.run()

    async def _run(self) -> None:
        async with TaskGroup() as group:
            for work in (
                self.event_log.run(),
                self.scheduler.run(),
                self.cancels.run(),
                self._enrolment.run(),
                self.sweep.run(interval_s=self._settings.dispatcher_sweep_interval_s),
                self._idle_unloads.run(),
                self._retention.run(),
                self._count_waiting(),
                self._consume(JOBS_QUEUE, self.intake.handle, max_items=50),
                self._consume(REPORTS_QUEUE, self.recorder.handle, max_items=200),
                self._consume(DEAD_QUEUE, self.dead_letters.handle, max_items=50),
                self._consume(HEARTBEATS_QUEUE, self.heartbeats.handle, max_items=100),
                self._end_without_broker(),
            ):
                group.create_task(unending(work))
            self.scheduler.wake_waiting()

    async def _consume(self, queue: Queue, handle: Handle, *, max_items: int) -> None:
        await consume_forever(
            partial(self._subscribe, queue, prefetch=max_items * 2),
            partial(self._handle_with_retries, handle, queue.name),
            name=queue.name,
            max_items=max_items,
            # An operator may have deleted the queue: declare it again before consuming.
            prepare=partial(_declare, self._broker),
            first_alone=True,
        )

    @asynccontextmanager
    async def _subscribe(self, queue: Queue, *, prefetch: int) -> AsyncIterator[Subscription]:
        async with self._broker.subscribe(queue, prefetch=prefetch) as subscription:
            self._subscribed.add(queue.name)
            try:
                yield subscription
                # What was handled is acked before the connection closes; else it comes again.
                await self.event_log.settled()
            finally:
                self._subscribed.discard(queue.name)

    async def _end_without_broker(self) -> None:
        """End the term once RabbitMQ was out of reach for `BROKER_AWAY_S`."""
        away_s = 0.0
        while away_s < BROKER_AWAY_S:
            await asyncio.sleep(1.0)
            away_s = 0.0 if self._subscribed else away_s + 1.0
        log.warning("dispatcher.without_broker", away_s=away_s)
        self._term.end()
        self._term.check()

    async def _handle_with_retries(
        self, handle: Handle, name: str, subscription: Subscription, batch: list[Delivery]
    ) -> None:
        """Handle a batch; retry while MongoDB, RabbitMQ or the body process is unavailable.

        The deliveries stay unsettled meanwhile: RabbitMQ keeps them, and their delivery counts do
        not grow. A message on which the body process dies each time is dead-lettered in the end.
        Raises `NotLeadingError` if the term is over, as it is when MongoDB is away for more than
        some seconds. RabbitMQ gives the deliveries to the next leader then, which counts once.
        """
        tries = reader_deaths = 0
        began = time.monotonic()
        while True:
            self._term.check()
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
            except NotLeadingError:
                raise
            except Exception as error:  # noqa: BLE001 - the boundary: no message may end the loop
                await self._one_by_one(handle, name, subscription, batch, error)
                return
            else:
                self._metrics.handled(name, len(batch), time.monotonic() - began)
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


async def _declare(broker: Broker) -> None:
    await broker.declare(QUEUES, exchanges=EXCHANGES)


def _raise_if_lost(subscription: Subscription, error: Exception) -> None:
    """Raise `BrokerUnavailableError` if the subscription is lost: it can't settle deliveries."""
    if subscription.is_lost:
        raise BrokerUnavailableError("The subscription was lost meanwhile.") from error
