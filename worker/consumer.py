"""Commands from the host's queue: parsed, refused or accepted, settled, and only then begun."""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog
from pydantic import ValidationError

from modelyard.broker import Broker, Delivery, Subscription, consume_forever
from modelyard.contract.errors import BrokerUnavailableError, ErrorCode
from modelyard.contract.messages import HostCommands
from modelyard.contract.topology import DEAD, host_queue
from worker.attempts import Attempts
from worker.desk import Decision, Desk, Taken
from worker.recovery import declare_topology
from worker.reporter import Reporter

log = structlog.get_logger(__name__)

PREFETCH = 64
MAX_DELIVERIES = 64
REASON_HEADER = "x-modelyard-reason"


class Consumer:
    """The one consumer of a host's queue; a second worker of the same host id is refused."""

    def __init__(  # noqa: PLR0913 - what a command passes on its way in
        self,
        *,
        broker: Broker,
        reporter: Reporter,
        desk: Desk,
        attempts: Attempts,
        announce: Callable[[], Awaitable[None]],
        host_id: str,
        incarnation: str,
    ) -> None:
        """Prepare; `announce` says that this boot is here, before its first command is read."""
        self._broker = broker
        self._reporter = reporter
        self._desk = desk
        self._attempts = attempts
        self._announce = announce
        self._announced = False
        self._host_id = host_id
        self._incarnation = incarnation
        self._subscribed_before = False
        self.attached = False
        """True while the broker has our consumer."""
        self.counts: Counter[str] = Counter()

    async def run(self) -> None:
        """Consume until cancelled; raises `TopologyMismatchError`."""
        await consume_forever(
            self._subscribe, self._handle, name="commands", max_items=MAX_DELIVERIES
        )

    @asynccontextmanager
    async def _subscribe(self) -> AsyncIterator[Subscription]:
        if self._subscribed_before:
            # The queue itself may be what went away.
            await declare_topology(self._broker, self._host_id)
        self._subscribed_before = True
        try:
            async with self._broker.subscribe(
                host_queue(self._host_id), prefetch=PREFETCH, exclusive=True
            ) as subscription:
                await self._announce_once()
                self.attached = True
                log.info("consumer.attached")
                yield subscription
        except BrokerUnavailableError as error:
            if "exclusive" in error.message.lower():
                log.warning("host.taken", hint="another worker already runs with this host id")
            raise
        finally:
            self.attached = False

    async def _announce_once(self) -> None:
        """Announce this boot, once it has the queue for itself.

        Not before: a second worker of the same host id would take the host's commands away from
        the first by its incarnation alone. What is delivered meanwhile waits unread.
        """
        if not self._announced:
            await self._announce()
            self._announced = True

    async def _handle(self, subscription: Subscription, deliveries: list[Delivery]) -> None:
        taken: list[Taken] = []
        for delivery in deliveries:
            commands = await self._parse(delivery)
            if commands is not None:
                taken += [self._desk.take(command) for command in commands.commands]
        new = [it for it in taken if it.decision is Decision.NEW and it.account is not None]
        for it in taken:
            if it.decision is Decision.REPEATED and it.account is not None:
                it.account.repeat()
        # Confirmed before the delivery is settled: from here the record and this process carry
        # the work. Once confirmed it is begun, whatever becomes of the delivery: it would be
        # recognised if it came again.
        await self._reporter.deliver([it.account.latest for it in new if it.account is not None])
        try:
            await subscription.ack(deliveries)
        finally:
            for it in new:
                if it.account is not None:
                    self._attempts.start(it.account, it.superseded)

    async def _parse(self, delivery: Delivery) -> HostCommands | None:
        """Return the commands; None if they are not for this boot or can't be read."""
        try:
            commands = HostCommands.model_validate_json(delivery.body)
        except ValidationError as error:
            await self._bury(delivery, error)
            return None
        if commands.host_id != self._host_id or commands.incarnation != self._incarnation:
            # For an earlier boot. The dispatcher's sweep sends what still counts again.
            self.counts["other_incarnation"] += 1
            log.info("commands.other_incarnation", incarnation=commands.incarnation)
            return None
        return commands

    async def _bury(self, delivery: Delivery, error: ValidationError) -> None:
        """Hand a message that can't be read to the dead letters, confirmed, with its reason."""
        kinds = {detail["type"] for detail in error.errors(include_url=False, include_input=False)}
        reason = ErrorCode.INVALID_JSON if "json_invalid" in kinds else ErrorCode.INVALID_REQUEST
        self.counts["malformed"] += 1
        log.warning("commands.malformed", reason=reason.value, errors=error.error_count())
        await self._broker.publish(
            DEAD,
            delivery.routing_key,
            delivery.body,
            message_type=delivery.type,
            headers={REASON_HEADER: reason.value},
        )
