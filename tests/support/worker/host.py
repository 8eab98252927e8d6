"""A whole worker over the fake engine and a broker in memory, for unit tests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from modelyard.contract.messages import (
    CancelOperation,
    CancelReason,
    DiscardContainer,
    HostCommand,
    HostCommands,
    HostControl,
    OperationReport,
)
from modelyard.contract.states import OperationState, Phase, Verb
from tests.support.waiting import eventually
from tests.support.worker.broker import FakeBroker, delivery_of
from tests.support.worker.harness import HOST, VerbHarness
from worker.attempts.journal import AttemptJournal
from worker.model_server.client import ModelServer
from worker.service import Worker, build_verbs
from worker.session.lease import WORKER_LEASE_S, Lease
from worker.settings import WorkerSettings

CLEANUP_RETRY_S = 0.05
"""Instead of five seconds."""


class Host:
    """One worker, and the words that a dispatcher says to it."""

    def __init__(
        self, harness: VerbHarness | None = None, *, fence_s: float = WORKER_LEASE_S, **lease: Any
    ) -> None:
        self.harness = harness or VerbHarness()
        self.broker = FakeBroker()
        self.stop = asyncio.Event()
        self._folder = TemporaryDirectory()
        self.journal = AttemptJournal(Path(self._folder.name) / "attempts")
        with pytest.MonkeyPatch.context() as patch:
            quick = partial(build_verbs, cleanup_retry_s=CLEANUP_RETRY_S)
            patch.setattr("worker.service.build_verbs", quick)
            self.service = Worker(
                WorkerSettings(host_id=HOST, worker_allowed_images=("*",), worker_devices=()),
                broker=self.broker,
                runtime=self.harness.runtime,
                server=ModelServer(self.harness.runtime.model_servers),
                journal=self.journal,
                new_lease=partial(Lease, seconds=fence_s, **lease),
            )

    @property
    def incarnations(self) -> list[str]:
        """Those that were announced, in order."""
        return [it.incarnation for it in self.broker.messages if it.online is not None]

    async def online(self, incarnations: int = 1) -> None:
        """Return once it has announced itself so often and listens."""

        async def there() -> bool:
            return (
                len(self.incarnations) >= incarnations
                and self.broker.attached == 1
                and self.broker.control is not None
            )

        await eventually(there, what="the announcement")

    async def send(self, *commands: HostCommand, incarnation: str | None = None) -> None:
        """Put commands into the host's queue, for the newest incarnation if none is given."""
        await self.online()
        assert self.broker.subscription is not None
        body = HostCommands(
            host_id=HOST, incarnation=incarnation or self.incarnations[-1], commands=commands
        )
        self.broker.subscription.give(delivery_of(body.model_dump_json().encode()))

    async def control(self, *, incarnation: str | None = None, **words: Any) -> None:
        """Say a word of control to the newest incarnation, which may be stopping."""

        async def listens() -> bool:
            return bool(self.incarnations) and self.broker.control is not None

        await eventually(listens, what="a consumer of control messages")
        assert self.broker.control is not None
        word = HostControl(host_id=HOST, incarnation=incarnation or self.incarnations[-1], **words)
        self.broker.control.give(delivery_of(word.model_dump_json().encode()))

    async def cancel(
        self, command: HostCommand, reason: CancelReason = "cancelled", *, epoch: int | None = None
    ) -> None:
        cancel = CancelOperation(
            operation_id=command.operation_id, epoch=epoch or command.epoch, reason=reason
        )
        await self.control(cancels=(cancel,))

    async def discard(self, container_id: str, generation: int = 1, job: str = "job-1") -> None:
        await self.control(
            discards=(
                DiscardContainer(container_id=container_id, job_id=job, generation=generation),
            )
        )

    def reports_of(self, command: HostCommand) -> list[OperationReport]:
        return [it for it in self.broker.reports if it.operation_id == command.operation_id]

    def ends_of(self, command: HostCommand) -> list[OperationReport]:
        return [it for it in self.reports_of(command) if it.state.terminal]

    async def ended(
        self, command: HostCommand, *, epoch: int = 1, within_s: float = 20.0
    ) -> OperationReport:
        async def found() -> OperationReport | None:
            return next((it for it in self.ends_of(command) if it.epoch == epoch), None)

        return await eventually(found, within_s=within_s, what=f"the end of {command.verb}")

    async def in_phase(self, command: HostCommand, phase: Phase) -> None:
        async def there() -> bool:
            return any(it.phase is phase for it in self.reports_of(command))

        await eventually(there, what=f"the phase {phase}")

    async def done(self, verb: Verb, **more: Any) -> OperationReport:
        """Send one command and return its end, which has to be a success."""
        command = self.harness.command(verb, **more)
        await self.send(command)
        end = await self.ended(command)
        assert end.state is OperationState.SUCCEEDED
        return end


@asynccontextmanager
async def running_host(harness: VerbHarness | None = None, **lease: Any) -> AsyncIterator[Host]:
    """Run a worker; it is stopped at the end, at once and without a word."""
    async with asyncio.timeout(30):
        host = Host(harness, **lease)
        running = asyncio.create_task(host.service.run(host.stop))
        try:
            yield host
        finally:
            running.cancel()
            await asyncio.wait((running,))
        if not running.cancelled():
            running.result()
