"""The verbs of a simulated host leave on its engine what a worker's would."""

import asyncio
import json

from bench.scale.engine import SimulatedEngine
from bench.scale.host import HELD, SimulatedVerbs
from bench.scale.site import MODEL
from modelyard.contract.ids import new_operation_id
from modelyard.contract.messages import HostCommand
from modelyard.contract.states import JobState, OperationState, Verb
from worker.attempts.attempt import Attempt, Outcome
from worker.model_server.client import ModelServer
from worker.model_server.http_exchange import BoundedTransport
from worker.settings import WorkerSettings


class Bench:
    """One simulated host, and commands for it."""

    def __init__(self) -> None:
        self.engine = SimulatedEngine("h1")
        settings = WorkerSettings(host_id="h1")
        self.verbs = SimulatedVerbs(self.engine, ModelServer(BoundedTransport()), settings)
        self.reported = asyncio.Event()

    def attempt(self, verb: Verb, job_id: str = "j1") -> Attempt:
        command = HostCommand(
            operation_id=new_operation_id(),
            epoch=1,
            verb=verb,
            job_id=job_id,
            generation=1,
            model=MODEL,
            timeout_s=60.0,
        )
        return Attempt(command, lambda _: self.reported.set())

    async def do(self, verb: Verb) -> Outcome:
        return await self.verbs.perform(self.attempt(verb))


async def test_a_created_job_has_a_container_until_it_is_terminated() -> None:
    bench = Bench()

    created = await bench.do(Verb.DEPLOY_CREATE)
    [container] = await bench.engine.list_uninspected()
    loaded = await bench.do(Verb.DEPLOY_LOAD)
    ended = await bench.do(Verb.TERMINATE)

    assert (created.job_state, created.container_id) == (JobState.CREATED, container.id)
    assert (loaded.job_state, loaded.container_id) == (JobState.LOADED, container.id)
    assert ended.job_state is JobState.TERMINATED
    assert await bench.engine.list_uninspected() == []


async def test_an_inference_has_a_result_and_leaves_the_job_as_it_is() -> None:
    bench = Bench()
    await bench.do(Verb.DEPLOY_CREATE)

    answered = await bench.do(Verb.INFER)

    assert (answered.state, answered.job_state) == (OperationState.SUCCEEDED, None)
    assert json.loads(answered.result_json or "") == {"outputs": []}


async def test_the_load_of_a_held_job_lasts_until_it_is_cancelled() -> None:
    bench = Bench()
    attempt = bench.attempt(Verb.DEPLOY_LOAD, f"{HELD}1")
    loading = asyncio.create_task(bench.verbs.perform(attempt))
    await bench.reported.wait()

    attempt.cancellation.request("cancelled")

    assert (await loading).state is OperationState.CANCELLED
