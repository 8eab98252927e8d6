"""Consumes the host's queue: parse, admit, write down, start; `Acceptance` acks later."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog

from modelyard.broker import (
    Delivery,
    QueueHeldError,
    Subscription,
    consume_forever,
)
from modelyard.contract.messages import HostCommand
from modelyard.process.crash_points import crash_point
from modelyard.process.tasks import TaskGroup
from worker.attempts.journal import key_of
from worker.attempts.registry import AttemptRegistry, CommandDecision, DecidedCommand
from worker.execution.executor import AttemptRunner
from worker.session.acceptance import Acceptance
from worker.session.command_decode import (
    ParsedSpecs,
    UnreadableCommand,
    read_commands,
    read_envelope,
)
from worker.session.host_channel import HostChannel

log = structlog.get_logger(__name__)

PREFETCH = 64
MAX_DELIVERIES = 64


class CommandConsumer:
    """The one consumer of a host's queue; a second worker of the same host id is refused."""

    def __init__(
        self,
        channel: HostChannel,
        *,
        acceptance: Acceptance,
        registry: AttemptRegistry,
        attempts: AttemptRunner,
        announce: Callable[[], Awaitable[None]],
        held: Callable[[], Awaitable[None]],
    ) -> None:
        """Wire the consumer; `run` begins to consume.

        `announce` announces this incarnation; it is called before the first command is read.
        `held` returns at once while the lease is held, and never once it is lost: then no command
        is admitted, and the broker returns the unsettled deliveries to the queue.
        """
        self._channel = channel
        self._acceptance = acceptance
        self._registry = registry
        self._attempts = attempts
        self._announce = announce
        self._announced = False
        self._held = held
        self._refused = False
        self._specs = ParsedSpecs()
        self.attached = False
        """True while the broker has this consumer registered."""

    async def run(self) -> None:
        """Consume until cancelled."""
        async with TaskGroup() as tasks:
            tasks.create_task(self._acceptance.run())
            await consume_forever(
                self._subscribe,
                self._handle,
                name="commands",
                max_items=MAX_DELIVERIES,
                # The queue itself may be gone: ask a dispatcher to declare it again.
                prepare=self._channel.say_hello,
            )

    @asynccontextmanager
    async def _subscribe(self) -> AsyncIterator[Subscription]:
        try:
            async with self._channel.commands(prefetch=PREFETCH) as subscription:
                self._refused = False
                await self._announce_once()
                self.attached = True
                log.info("consumer.attached")
                yield subscription
        except QueueHeldError:
            if not self._refused:
                log.warning("host.taken", hint="another worker already runs with this host id")
            self._refused = True
            raise
        finally:
            self.attached = False

    async def _announce_once(self) -> None:
        """Announce this incarnation, after it became the queue's exclusive consumer.

        Not earlier: the announcement alone makes the dispatcher address all commands to the new
        incarnation, so a second worker with the same host id would cut off the first one.
        Deliveries that come meanwhile wait unread.
        """
        if not self._announced:
            await self._announce()
            self._announced = True

    async def _handle(self, subscription: Subscription, deliveries: list[Delivery]) -> None:
        read = [(delivery, await self._read(delivery)) for delivery in deliveries]
        await self._registry.room()
        await self._held()
        # No await between the check of the lease and these admissions: the registry refuses an
        # admitted command when it comes again, so one that is admitted and not started is lost.
        taken = [
            (delivery, command, self._registry.take(command))
            for delivery, commands in read
            for command in commands
        ]
        for delivery in deliveries:
            reporting = [
                key_of(command)
                for source, command, it in taken
                if source is delivery and (it.attempt is not None or it.report is not None)
            ]
            self._acceptance.hold(subscription, delivery, reporting)
        for _, command, it in taken:
            if it.decision is not CommandDecision.NEW:
                self._not_new(command, it)
        new = [it.attempt for *_, it in taken if it.attempt is not None and not it.attempt.begun]
        if new:
            crash_point("worker.before_accept")
            await self._acceptance.secure(new)
            crash_point("worker.after_accept")
        for *_, it in taken:
            if it.attempt is not None:
                self._attempts.start(it.attempt, it.superseded)

    def _not_new(self, command: HostCommand, it: DecidedCommand) -> None:
        log.info(
            "command.not_new",
            decision=it.decision.value,
            operation_id=command.operation_id,
            epoch=command.epoch,
            generation=command.generation,
        )
        if it.report is not None:
            self._acceptance.repeat(it.report)

    async def _read(self, delivery: Delivery) -> list[HostCommand]:
        """Return the commands for this incarnation; send unreadable ones to the dead letters."""
        envelope = read_envelope(delivery.body)
        if isinstance(envelope, UnreadableCommand):
            await self._return(delivery, envelope)
            return []
        if not self._channel.is_addressed_by(envelope.host_id, envelope.incarnation):
            # Addressed to an earlier incarnation. The dispatcher's sweep sends again what is still
            # needed.
            log.info("commands.other_incarnation", incarnation=envelope.incarnation)
            return []
        commands, unreadable = read_commands(envelope, self._specs)
        for one in unreadable:
            await self._return(delivery, one)
        return commands

    async def _return(self, delivery: Delivery, letter: UnreadableCommand) -> None:
        """Publish an unreadable command, confirmed; a dispatcher records it as a dead letter."""
        log.warning("command.unreadable", code=letter.error.code, error=letter.error.message)
        await self._channel.return_command(delivery, letter.body, letter.error)
