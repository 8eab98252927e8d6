"""A model in the memory of a running container: loaded, asked, unloaded. All of it repeatable."""

import asyncio

from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.messages import HostCommand
from modelyard.contract.states import Phase
from modelyard.crash_points import crash_point
from worker.account import Account
from worker.containers import Containers, address_of
from worker.datasets import mount_target
from worker.hooks import ModelServer, read_result
from worker.placeholders import Fillings
from worker.profiles import InMemory, talk_of
from worker.readiness import not_ready, until, while_running
from worker.runtime import ContainerFacts, ContainerRuntime

WATCH_AFTER_S = 1.0
"""Requests that take longer than this also watch the container; most never do."""


class Models:
    """What operations do to the model in a container."""

    def __init__(
        self, runtime: ContainerRuntime, containers: Containers, server: ModelServer
    ) -> None:
        self._runtime = runtime
        self._containers = containers
        self._server = server

    async def load(
        self, command: HostCommand, facts: ContainerFacts, account: Account
    ) -> ContainerFacts:
        """Bring the model into memory and wait until it answers ready."""
        if talk_of(command.model).in_memory is InMemory.PROCESS_RUNS:
            facts = await self._load_by_start(command, facts, account)
        else:
            if not facts.running:
                # A CREATE was cut short, a LOAD was cancelled, or the container died.
                facts = await self._containers.serve(command, facts, account)
            if not await self._is_loaded(command, facts):
                account.tell(Phase.LOADING, container_id=facts.id)
                await account.may_go_on()
                await self._load_by_hook(command, facts)
        crash_point("worker.after_load")
        self._containers.health.was_loaded(facts.id)
        return facts

    async def unload(self, command: HostCommand, facts: ContainerFacts, account: Account) -> None:
        """Take the model out of memory."""
        if talk_of(command.model).in_memory is InMemory.PROCESS_RUNS:
            if facts.running:
                account.tell(Phase.UNLOADING, container_id=facts.id)
                await self._runtime.stop(facts.id, grace_s(command))
        elif await self._may_be_loaded(command, facts):
            account.tell(Phase.UNLOADING, container_id=facts.id)
            await self._unload_by_hook(command, facts)
        crash_point("worker.after_unload")
        self._containers.health.was_unloaded(facts.id)

    async def infer(self, command: HostCommand, facts: ContainerFacts, account: Account) -> str:
        """Send the input, or the word to run over the dataset; return the answer as JSON text."""
        talk = talk_of(command.model)
        fillings = _fillings(command)
        has_input = command.input_json is not None
        hook = talk.inference(has_input=has_input)
        nothing_to_say = not has_input and talk.infer_dataset is not None and not fillings.dataset
        if hook is None or nothing_to_say:
            raise ModelyardError(ErrorCode.MISSING_INPUT)
        address = address_of(facts)
        account.tell(Phase.INFERRING, container_id=facts.id)
        await account.may_go_on()
        sending = self._server.send(address, hook, fillings, failure=ErrorCode.INFERENCE_FAILED)
        body = await while_running(self._runtime, facts.id, sending, grace_s=WATCH_AFTER_S)
        crash_point("worker.after_infer")
        return await read_result(body)

    async def _load_by_start(
        self, command: HostCommand, facts: ContainerFacts, account: Account
    ) -> ContainerFacts:
        facts = await self._containers.start(command, facts, account)
        account.tell(Phase.LOADING, container_id=facts.id)
        ready = talk_of(command.model).ready
        if ready is not None:
            seconds = command.model.load_timeout_s
            await self._containers.probe(facts, ready, seconds, "answer ready")
        return facts

    async def _load_by_hook(self, command: HostCommand, facts: ContainerFacts) -> None:
        seconds = command.model.load_timeout_s
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                await while_running(self._runtime, facts.id, self._hook_and_ready(command, facts))
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise not_ready("load the model", seconds) from error

    async def _hook_and_ready(self, command: HostCommand, facts: ContainerFacts) -> None:
        talk = talk_of(command.model)
        address = address_of(facts)
        if talk.load is not None:
            await self._server.send(
                address, talk.load, _fillings(command), failure=ErrorCode.LOAD_FAILED
            )
        if talk.ready is not None:
            ready = talk.ready
            await until(
                lambda: self._server.answers(address, ready),
                command.model.load_timeout_s,
                "answer ready",
            )

    async def _unload_by_hook(self, command: HostCommand, facts: ContainerFacts) -> None:
        talk = talk_of(command.model)
        address = address_of(facts)
        if talk.unload is None:
            return
        sending = self._server.send(
            address, talk.unload, _fillings(command), failure=ErrorCode.UNLOAD_FAILED
        )
        await while_running(self._runtime, facts.id, sending, grace_s=WATCH_AFTER_S)
        ready = talk.ready
        if ready is None:
            return

        async def unloaded() -> bool:
            return not await self._server.answers(address, ready)

        try:
            await until(unloaded, command.model.load_timeout_s, "stop to answer ready")
        except ModelyardError as error:
            raise ModelyardError(ErrorCode.UNLOAD_FAILED, error.message) from error

    async def _is_loaded(self, command: HostCommand, facts: ContainerFacts) -> bool:
        address = address_of(facts)
        ready = talk_of(command.model).ready
        if ready is None:
            return self._containers.health.put_into_memory(facts.id)
        return await self._server.answers(address, ready)

    async def _may_be_loaded(self, command: HostCommand, facts: ContainerFacts) -> bool:
        """Tell whether unloading has work to do; a server that can't be asked is told anyway."""
        address = address_of(facts)
        ready = talk_of(command.model).ready
        return ready is None or await self._server.answers(address, ready)


def grace_s(command: HostCommand) -> float:
    """Return the seconds between SIGTERM and SIGKILL; never all of the operation's time."""
    return min(command.model.stop_grace_s, command.timeout_s / 2)


def _fillings(command: HostCommand) -> Fillings:
    return Fillings(
        model=command.model.served_name,
        dataset=mount_target(command.dataset, command.model) or "",
        input_json=command.input_json,
    )
