"""A host driven by hand: the real queues and messages, with the test in the worker's place."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from modelyard.broker import Broker, Subscription
from modelyard.contract.capacity.local_content import LocalContent
from modelyard.contract.messages import (
    EngineFacts,
    Heartbeat,
    HostCommand,
    HostCommands,
    HostControl,
    HostOnline,
    Inventory,
    InventoryItem,
    OperationReport,
    WorkerReports,
)
from modelyard.contract.states import JobState, OperationState, Verb
from modelyard.contract.topology import (
    HEARTBEATS,
    REPORTS,
    control_queue,
    host_queue,
)
from tests.support.dispatcher.enrolled import enrol

LEADS_TO = {
    Verb.DEPLOY_CREATE: JobState.CREATED,
    Verb.DEPLOY_LOAD: JobState.LOADED,
    Verb.DEPLOY_UNLOAD: JobState.CREATED,
    Verb.TERMINATE: JobState.TERMINATED,
    Verb.TEMP: JobState.TERMINATED,
    Verb.INFER: None,
}


class ScriptedHost:
    """Speaks as one host's worker; says exactly what the test lets it say."""

    def __init__(self, broker: Broker, host_id: str, *, slots: int = 4) -> None:
        self.host_id = host_id
        self.slots = slots
        self.incarnation = uuid.uuid4().hex
        self.number = 0
        """Of the last message."""
        self._broker = broker
        self._commands: asyncio.Queue[HostCommand] = asyncio.Queue()
        self._controls: asyncio.Queue[HostControl] = asyncio.Queue()
        self.labels: dict[str, str] = {}
        self.begun_known = True
        """False: its announcements say that earlier boots may have begun what nobody knows of."""

    async def come_online(self, *inventory: InventoryItem) -> None:
        """Announce a boot."""
        online = HostOnline(
            slots=self.slots,
            labels=self.labels,
            engine=EngineFacts(version="20.10", api_version="1.41"),
            inventory=inventory,
            begun_known=self.begun_known,
        )
        await self._report(online=online)

    async def beat(self) -> None:
        """Send one heartbeat."""
        beat = Heartbeat(
            host_id=self.host_id, incarnation=self.incarnation, slots=self.slots, labels=self.labels
        )
        await self._broker.publish(HEARTBEATS, "", beat.model_dump_json().encode())

    async def command(self, *, within_s: float = 15.0) -> HostCommand:
        """Return the next command that came through the host's own queue."""
        async with asyncio.timeout(within_s):
            return await self._commands.get()

    async def control(
        self, wanted: Callable[[HostControl], bool] = lambda _: True, *, within_s: float = 15.0
    ) -> HostControl:
        """Return the next control message that is wanted; the others before it are dropped."""
        async with asyncio.timeout(within_s):
            while True:
                message = await self._controls.get()
                if wanted(message):
                    return message

    async def look(
        self,
        *items: InventoryItem,
        busy: tuple[str, ...] = (),
        number: int | None = None,
        local: LocalContent | None = None,
    ) -> None:
        """Tell what is on the host; with `number` as if it had been told by then."""
        inventory = Inventory(items=items, busy=busy, local=local or LocalContent())
        await self._report(inventory=inventory, number=number)

    @property
    def has_command(self) -> bool:
        return not self._commands.empty()

    @property
    def has_control(self) -> bool:
        return not self._controls.empty()

    async def accept(self, command: HostCommand) -> None:
        """Report RUNNING, as a worker does before it acknowledges."""
        await self.report(command, OperationState.RUNNING, seq=1)

    async def finish(
        self,
        command: HostCommand,
        state: OperationState = OperationState.SUCCEEDED,
        *,
        seq: int = 9,
        **fields: Any,
    ) -> None:
        """Report the end of a command; the job goes where the verb leads, unless told otherwise."""
        if state is OperationState.SUCCEEDED:
            fields.setdefault("job_state", LEADS_TO[command.verb])
            fields.setdefault("container_id", "ab" * 32)
        await self.report(command, state, seq=seq, **fields)

    async def report(
        self, command: HostCommand, state: OperationState, *, seq: int, **fields: Any
    ) -> None:
        """Report anything of a command."""
        await self._report(operations=[self.made(command, state, seq=seq, **fields)])

    def made(
        self, command: HostCommand, state: OperationState, *, seq: int, **fields: Any
    ) -> OperationReport:
        """Return a report without sending it."""
        return OperationReport(
            operation_id=command.operation_id,
            epoch=fields.pop("epoch", command.epoch),
            seq=seq,
            job_id=command.job_id,
            generation=command.generation,
            state=state,
            **fields,
        )

    async def _report(
        self,
        *,
        online: HostOnline | None = None,
        operations: Sequence[OperationReport] = (),
        inventory: Inventory | None = None,
        number: int | None = None,
    ) -> None:
        self.number += 1
        message = WorkerReports(
            host_id=self.host_id,
            incarnation=self.incarnation,
            number=self.number if number is None else number,
            online=online,
            operations=tuple(operations),
            inventory=inventory,
        )
        await self._broker.publish(REPORTS, self.host_id, message.model_dump_json().encode())

    async def listen(self, subscription: Subscription) -> None:
        """Collect commands for this incarnation."""
        async for batch in subscription.batches(max_items=10):
            for delivery in batch:
                message = HostCommands.model_validate_json(delivery.body)
                if message.incarnation == self.incarnation:
                    for command in message.commands:
                        self._commands.put_nowait(command)
            await subscription.ack(batch)

    async def listen_to_control(self, subscription: Subscription) -> None:
        """Collect what comes past the commands."""
        async for batch in subscription.batches(max_items=10):
            for delivery in batch:
                message = HostControl.model_validate_json(delivery.body)
                if message.incarnation == self.incarnation:
                    self._controls.put_nowait(message)
            await subscription.ack(batch)


@asynccontextmanager
async def scripted_host(
    broker: Broker, host_id: str, *, slots: int = 4, online: bool = True, **labels: str
) -> AsyncIterator[ScriptedHost]:
    """Run a scripted host for the length of a test."""
    host = ScriptedHost(broker, host_id, slots=slots)
    host.labels = labels
    await enrol(broker, host_id)
    async with (
        broker.subscribe(host_queue(host_id), prefetch=100, exclusive=True) as subscription,
        broker.subscribe(control_queue(host_id), prefetch=100) as control,
    ):
        listening = [
            asyncio.create_task(host.listen(subscription)),
            asyncio.create_task(host.listen_to_control(control)),
        ]
        if online:
            await host.come_online()
        try:
            yield host
        finally:
            for task in listening:
                task.cancel()
