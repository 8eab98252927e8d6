"""Loads, calls and unloads the model in a running container. Every step is idempotent."""

import asyncio

import structlog

from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.messages import HostCommand
from modelyard.contract.states import Phase
from modelyard.process.crash_points import crash_point
from worker.attempts.attempt import Attempt
from worker.containers.lifecycle import ContainerLifecycle
from worker.containers.readiness import address_of, while_running
from worker.engine.protocol import ContainerFacts, ContainerRuntime
from worker.execution.large_contents import keeping
from worker.execution.server_memory import ServerMemory, fillings_of
from worker.model_server.client import ModelServer, Question
from worker.model_server.probes import ProbeVerdict
from worker.model_server.profiles import InMemory, dialogue_of
from worker.model_server.results import KeptResult, ResultReader
from worker.model_server.templates import INPUT

log = structlog.get_logger(__name__)

WATCH_AFTER_S = 1.0
"""Seconds after which a request to the model also watches the container; most end earlier."""


_NOT_AS_IT_IS = (
    'An uploaded input is sent as it is: the body of the model\'s infer hook has to be "{input}".'
)


class Models:
    """The steps of verbs that concern the model in a container."""

    def __init__(
        self,
        runtime: ContainerRuntime,
        containers: ContainerLifecycle,
        server: ModelServer,
        results: ResultReader,
    ) -> None:
        self._runtime = runtime
        self._containers = containers
        self._server = server
        self._results = results

    async def load(
        self, command: HostCommand, facts: ContainerFacts, attempt: Attempt
    ) -> ContainerFacts:
        """Bring the model into memory and wait until it answers ready."""
        if dialogue_of(command.model).in_memory is InMemory.PROCESS_RUNS:
            facts = await self._load_by_start(command, facts, attempt)
        else:
            if not facts.running:
                # A CREATE did not finish, a LOAD was cancelled, or the container exited.
                facts = await self._containers.serve(command, facts, attempt)
            memory = ServerMemory(self._server, command, facts)
            if not await self._is_loaded(facts, memory):
                attempt.report(Phase.LOADING, container_id=facts.id)
                await attempt.require_lease()
                # If this attempt fails the model may be in memory or not.
                self._containers.health.forget(facts.id)
                await self._containers.meter.begin(command, facts)
                await self._load_in_time(command, facts, await self._memory_of(command))
        await self._containers.meter.measure(facts.id)
        self._containers.health.stopped.discard(facts.id)
        crash_point("worker.after_load")
        self._containers.health.record_loaded(facts.id)
        return facts

    async def unload(self, command: HostCommand, facts: ContainerFacts, attempt: Attempt) -> None:
        """Take the model out of memory; return once that is measured to be free.

        Raises `memory_not_freed` if it is not in time: the container is stopped then, so it is
        free, and a LOAD starts the container again.
        """
        dialogue = dialogue_of(command.model)
        if dialogue.in_memory is InMemory.PROCESS_RUNS or command.stop_container:
            if facts.running:
                await self._stop(command, facts, attempt)
        elif facts.running or facts.id not in self._containers.health.stopped:
            # A busy server may answer as if its model were unloaded, so its answer alone is not
            # enough.
            known = self._containers.health.known_unloaded(facts.id)
            if not (known and await (await self._memory_of(command)).reports_unloaded()):
                attempt.report(Phase.UNLOADING, container_id=facts.id)
                unloading = (await self._memory_of(command)).unload()
                if not await while_running(
                    self._runtime, facts.id, unloading, grace_s=WATCH_AFTER_S
                ):
                    # The server can't unload, so the container is stopped; a LOAD starts it again.
                    self._containers.health.stopped.add(facts.id)
                    await self._stop(command, facts, attempt)
            if facts.id not in self._containers.health.stopped:
                await self._require_freed(command, facts, attempt)
        crash_point("worker.after_unload")
        self._containers.health.record_unloaded(facts.id)

    async def _require_freed(
        self, command: HostCommand, facts: ContainerFacts, attempt: Attempt
    ) -> None:
        given_back = self._containers.given_back
        kept = await given_back.kept_after_unload(command, facts.id)
        if not kept:
            return
        log.warning(
            "model.memory_not_freed",
            job_id=command.job_id,
            container_id=facts.id,
            kept=kept,
            within_s=given_back.rules.within_s,
        )
        self._containers.health.stopped.add(facts.id)
        await self._stop(command, facts, attempt)
        crash_point("worker.after_unload")
        self._containers.health.record_unloaded(facts.id)
        raise ModelyardError(
            ErrorCode.MEMORY_NOT_FREED,
            f"{given_back.rules.within_s:g} s after its unload the model server still held "
            f"{' and '.join(kept)} more than it should. Its container was stopped, which frees the "
            "memory; the next load starts it again.",
            kept=kept,
        )

    async def infer(
        self, command: HostCommand, facts: ContainerFacts, attempt: Attempt
    ) -> KeptResult:
        """Send the input, or the request to run over the dataset; return the answer.

        Of an uploaded input and of a large answer one piece at a time is in memory, so a server
        that is slow with either keeps nothing from others.
        """
        dialogue = dialogue_of(command.model)
        fillings = fillings_of(command)
        has_input = command.input_json is not None or command.input_id is not None
        hook = dialogue.inference(has_input=has_input)
        has_no_request = (
            not has_input and dialogue.infer_dataset is not None and not fillings.dataset
        )
        if hook is None or has_no_request:
            raise ModelyardError(ErrorCode.MISSING_INPUT)
        address_of(facts)  # for a container that has ended no input is fetched
        if command.input_id is not None and hook.body != INPUT:
            raise ModelyardError(ErrorCode.UNEXPECTED_INPUT, _NOT_AS_IT_IS)
        uploaded = None if command.input_id is None else await attempt.transfer.receive(command)
        attempt.report(Phase.INFERRING, container_id=facts.id)
        await attempt.require_lease()
        # The address of a container that has ended is given to another one. So it is asked for
        # after all else that takes time.
        facts = await self._containers.reach(command)
        address = address_of(facts)
        self._containers.meter.use(facts.id)
        known = self._containers.running.get(facts.name) is facts
        # A connection ends with its container: one that was made while it ran leads to no other.
        question = Question(
            *(hook, fillings, ErrorCode.INFERENCE_FAILED, uploaded),
            before_sending=self._containers.running.check_of(facts),
        )
        asking = self._server.ask(
            address, question, keeps_connection=known, keep_large=keeping(command, attempt)
        )
        reply = await (
            self._containers.running.work_in(facts, asking)
            if known
            else while_running(self._runtime, facts.id, asking, grace_s=WATCH_AFTER_S)
        )
        crash_point("worker.after_infer")
        return await self._results.read_reply(reply)

    async def _memory_of(self, command: HostCommand) -> ServerMemory:
        """Return the memory of the command's container, at the address that it has now.

        Ask for it right before each use: another container may have the address some seconds later.
        """
        return ServerMemory(self._server, command, await self._containers.require(command))

    async def _stop(self, command: HostCommand, facts: ContainerFacts, attempt: Attempt) -> None:
        attempt.report(Phase.UNLOADING, container_id=facts.id)
        await self._containers.stop(facts, grace_s(command))

    async def _load_by_start(
        self, command: HostCommand, facts: ContainerFacts, attempt: Attempt
    ) -> ContainerFacts:
        if not facts.running:
            await self._containers.meter.begin(command, facts)
        facts = await self._containers.start(command, facts, attempt)
        attempt.report(Phase.LOADING, container_id=facts.id)
        ready = dialogue_of(command.model).ready
        if ready is not None:
            seconds = command.model.load_timeout_s
            await self._containers.probe(facts, ready, seconds, "answer ready")
        return facts

    async def _load_in_time(
        self, command: HostCommand, facts: ContainerFacts, memory: ServerMemory
    ) -> None:
        limit = asyncio.timeout(command.model.load_timeout_s)
        try:
            async with limit:
                await while_running(self._runtime, facts.id, memory.load())
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise memory.not_loaded() from error

    async def _is_loaded(self, facts: ContainerFacts, memory: ServerMemory) -> bool:
        if memory.ready is None:
            return self._containers.health.known_loaded(facts.id)
        return (await memory.ready.ask()).answer is ProbeVerdict.YES


def grace_s(command: HostCommand) -> float:
    """Return the seconds between SIGTERM and SIGKILL: at most half of the operation's time."""
    return min(command.model.stop_grace_s, command.timeout_s / 2)
