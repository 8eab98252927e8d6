"""A whole worker over a Docker Engine: what only real containers and their timing can show."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from deploy.local.docker_engine import DockerEngine
from modelyard.contract.catalog.entries import Hook, Hooks, ModelSpec, Profile
from modelyard.contract.errors import ErrorCode
from modelyard.contract.messages import InventoryItem
from modelyard.contract.states import JobState, OperationState, Phase, Verb
from tests.support.servers.engines import die_at_removing
from tests.support.waiting import eventually
from tests.support.worker.harness import HOST, VerbHarness
from tests.support.worker.host import Host
from worker.engine.docker.runtime import DockerRuntime
from worker.model_server.client import ModelServer
from worker.model_server.http_exchange import BoundedTransport
from worker.service import Worker
from worker.settings import WorkerSettings

CREATE, LOAD, INFER, TEMP = Verb.DEPLOY_CREATE, Verb.DEPLOY_LOAD, Verb.INFER, Verb.TEMP
SOON_S = 3.0
ENGINE_BACK_S = 20.0
"""Well above the second that it should take: the machine of a test may be busy."""


def probe(**more: Any) -> ModelSpec:
    fields: dict[str, Any] = {
        "name": "probe",
        "image": "modelyard/probe:local",
        "profile": Profile.HTTP,
        "port": 8080,
        "hooks": Hooks(
            alive="/alive",
            ready="/ready",
            load=Hook(path="/load"),
            unload=Hook(path="/unload"),
            infer=Hook(path="/infer", body="{input}"),
        ),
    }
    return ModelSpec(**{**fields, **more})


class RealHost(Host):
    """The worker of a real engine; all of its containers belong to one job."""

    def __init__(self, url: str) -> None:
        super().__init__(VerbHarness(probe()))
        self.runtime = DockerRuntime(
            url, host_id=HOST, network="modelyard-conformance", publish=True
        )
        self.job = f"t{uuid.uuid4().hex[:10]}"
        self.transport = BoundedTransport()
        self.service = Worker(
            WorkerSettings(
                host_id=HOST,
                worker_network="modelyard-conformance",
                worker_allowed_images=("modelyard/*",),
            ),
            broker=self.broker,
            runtime=self.runtime,
            server=ModelServer(self.transport),
            journal=self.journal,
        )

    async def begun(self, verb: Verb, phase: Phase, **more: Any) -> Any:
        """Return a command of the job that is in this phase."""
        command = self.harness.command(verb, job=self.job, **more)
        await self.send(command)
        await self.in_phase(command, phase)
        return command

    async def seen(self) -> InventoryItem | None:
        """Return what the newest inventory says of the job's container."""
        told = [it.inventory for it in self.broker.messages if it.inventory is not None]
        return next((it for it in told[-1].items if it.job_id == self.job), None) if told else None


@pytest.fixture
async def host(engine: DockerEngine) -> AsyncIterator[RealHost]:
    made = RealHost(engine.url)
    running = asyncio.create_task(made.service.run(made.stop))
    async with asyncio.timeout(90):
        try:
            await made.online()
            yield made
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            for facts in await made.runtime.list_uninspected():
                await made.runtime.remove(facts.id)
            made.transport.close()
            await made.runtime.close()


async def test_the_death_of_a_loaded_container_is_told_at_once(host: RealHost) -> None:
    created = await host.done(CREATE, job=host.job)
    await host.done(LOAD, job=host.job)

    async def seen_loaded() -> bool:
        item = await host.seen()
        return item is not None and item.loaded

    await eventually(seen_loaded)
    assert created.container_id is not None
    await host.runtime.stop(created.container_id, 0)

    async def seen_dead() -> InventoryItem | None:
        item = await host.seen()
        return item if item is not None and not item.running else None

    item = await eventually(seen_dead, within_s=SOON_S)
    assert (item.ever_started, item.loaded) == (True, False)
    assert item.exit_code is not None


async def test_an_inference_is_cancelled_and_its_model_serves_on(host: RealHost) -> None:
    await host.done(CREATE, job=host.job)
    await host.done(LOAD, job=host.job)
    command = await host.begun(INFER, Phase.INFERRING, input={"sleep": 60})
    await host.cancel(command)
    end = await host.ended(command, within_s=SOON_S)
    assert (end.state, end.job_state) == (OperationState.CANCELLED, None)
    assert (await host.done(INFER, job=host.job, input={})).result_json is not None


async def test_a_load_is_cancelled_and_may_be_made_again(host: RealHost) -> None:
    slow = probe(env={"PROBE_LOAD_SECONDS": "2"})
    await host.done(CREATE, job=host.job, spec=slow)
    command = await host.begun(LOAD, Phase.LOADING, spec=slow)
    await host.cancel(command)
    end = await host.ended(command, within_s=SOON_S)
    assert (end.state, end.job_state) == (OperationState.CANCELLED, JobState.CREATED)
    assert end.error is not None
    assert end.error.code is ErrorCode.CANCELLED
    assert (await host.done(LOAD, job=host.job, spec=slow)).job_state is JobState.LOADED
    assert (await host.done(INFER, job=host.job, spec=slow, input={})).result_json is not None


async def test_a_temp_is_cancelled_and_leaves_nothing(host: RealHost) -> None:
    command = await host.begun(TEMP, Phase.INFERRING, input={"sleep": 60})
    await host.cancel(command)
    end = await host.ended(command, within_s=SOON_S)
    assert (end.state, end.job_state) == (OperationState.CANCELLED, JobState.TERMINATED)

    async def gone() -> bool:
        return await host.runtime.list_own(host.job) == []

    await eventually(gone)


async def test_a_removal_that_the_engine_died_at_is_finished(
    host: RealHost, engine: DockerEngine
) -> None:
    created = await host.done(CREATE, job=host.job)
    assert created.container_id is not None
    await asyncio.to_thread(die_at_removing, engine, created.container_id)

    async def gone() -> bool:
        return await host.runtime.list_own(host.job) == []

    async def untold() -> bool:
        return await host.seen() is None

    await eventually(gone, within_s=ENGINE_BACK_S)
    await eventually(untold, within_s=ENGINE_BACK_S)


async def test_a_container_that_nobody_owns_is_discarded(host: RealHost) -> None:
    created = await host.done(CREATE, job=host.job)
    assert created.container_id is not None
    await host.discard(created.container_id, job=host.job)

    async def gone() -> bool:
        return await host.runtime.list_own(host.job) == []

    await eventually(gone)
