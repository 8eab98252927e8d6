"""The boot of an incarnation: list the containers, announce the host, only then take commands."""

import asyncio
import time

import structlog

from modelyard.broker import backoff_s
from modelyard.contract.errors import BrokerUnavailableError
from modelyard.contract.messages import EngineFacts, WorkerReports
from worker.attempts.journal import AttemptJournal
from worker.engine.listing import list_containers
from worker.engine.protocol import ContainerFacts, ContainerRuntime, EngineUnavailableError
from worker.session.host_channel import HostChannel
from worker.session.host_offer import HostOffer
from worker.session.inventory import InventoryBuilder
from worker.session.lease import Lease
from worker.session.reporter import MAX_REPORTS

log = structlog.get_logger(__name__)

ENGINE_WAIT_S = 30.0
"""Seconds that the first boot of a worker process waits for the engine."""
_ENGINE_RETRY_S = 0.5


class BootRecovery:
    """Prepares and announces one incarnation."""

    def __init__(
        self,
        channel: HostChannel,
        *,
        runtime: ContainerRuntime,
        builder: InventoryBuilder,
        lease: Lease,
        journal: AttemptJournal,
        offer: HostOffer,
    ) -> None:
        self._channel = channel
        self._runtime = runtime
        self._builder = builder
        self._lease = lease
        self._journal = journal
        self._offer = offer
        self._engine_facts: EngineFacts | None = None

    async def prepare(self, *, engine_wait_s: float = ENGINE_WAIT_S) -> None:
        """Wait for the engine, for the broker, and until a dispatcher has declared our queues.

        Raises `EngineUnavailableError` if the engine does not answer for `engine_wait_s` seconds.
        The wait for the broker and for a dispatcher has no limit.
        """
        self._engine_facts = await self._engine(engine_wait_s)
        failures = 0
        while not await self._is_enrolled(first=failures == 0):
            failures += 1
            await asyncio.sleep(backoff_s(failures))

    async def _is_enrolled(self, *, first: bool) -> bool:
        """Ask a dispatcher to declare this host's queues; return whether they exist."""
        try:
            await self._channel.say_hello()
            enrolled = await self._channel.is_enrolled()
        except BrokerUnavailableError as error:
            if first:
                log.warning("broker.waiting", error=str(error))
            return False
        if not enrolled and first:
            log.info("enrolment.waiting", hint="a dispatcher declares this host's queues")
        return enrolled

    async def announce(self) -> list[ContainerFacts]:
        """Publish this host's capacity and inventory, confirmed; return its containers.

        The first reports of what earlier incarnations had begun are published before that: so the
        dispatcher, which handles both in this order, takes none of them for never begun.
        The lease begins with this message. An engine that does not answer is waited for without a
        limit, because it has answered before. Raises `BrokerUnavailableError`; the caller may call
        again, because a second announcement does no harm.
        """
        containers = await self._containers()
        begun_known = self._journal.take_over()
        await self._report_begun()
        online = await self._offer.online(
            self._engine_facts or await self._runtime.facts(),
            await self._builder.build(containers),
            begun_known=begun_known,
        )
        channel = self._channel
        reports = WorkerReports(
            host_id=channel.host_id, incarnation=channel.incarnation, online=online
        )
        sent_at = self._lease.clock()
        await channel.publish_reports(reports.model_dump_json().encode())
        self._lease.renew(sent_at)
        self._journal.announced()
        log.info("host.online", incarnation=channel.incarnation, containers=len(containers))
        return containers

    async def _report_begun(self) -> None:
        """Report what earlier incarnations had begun, confirmed; then the journal forgets it."""
        channel = self._channel
        while begun := self._journal.begun[:MAX_REPORTS]:
            log.info("attempts.begun_before", count=len(begun))
            reports = WorkerReports(
                host_id=channel.host_id, incarnation=channel.incarnation, operations=tuple(begun)
            )
            await channel.publish_reports(reports.model_dump_json().encode())
            self._journal.reported(begun)

    async def _containers(self) -> list[ContainerFacts]:
        failures = 0
        while True:
            try:
                listed = await list_containers(self._runtime)
                return [facts for facts in listed if facts.labels and not facts.dead]
            except EngineUnavailableError as error:
                failures += 1
                if failures == 1:
                    log.warning("engine.waiting", error=error.message)
                await asyncio.sleep(_ENGINE_RETRY_S)

    async def _engine(self, wait_s: float) -> EngineFacts:
        """Return the engine's description of itself, after creating the job network."""
        ends_at = time.monotonic() + wait_s
        while True:
            try:
                facts = await self._runtime.facts()
                await self._runtime.ensure_network()
            except EngineUnavailableError:
                if time.monotonic() >= ends_at:
                    raise
                await asyncio.sleep(_ENGINE_RETRY_S)
            else:
                return facts
