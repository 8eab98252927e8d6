"""A worker's operations over the fake engine, for unit tests."""

import itertools
import json
from typing import Any, cast

from modelyard.contract.catalog.entries import DatasetSpec, Hook, Hooks, ModelSpec, Profile
from modelyard.contract.ids import new_operation_id
from modelyard.contract.messages import HostCommand, OperationReport
from modelyard.contract.states import Phase, Verb
from tests.fakes.devices import FakeDevices
from tests.fakes.programs import FakeBatch, FakeServer
from tests.fakes.runtime import FakeContainer, FakeRuntime, Program
from worker.attempts.attempt import Attempt, Outcome
from worker.containers.datasets import Datasets
from worker.containers.given_back import UnloadRules
from worker.containers.planning import PlanRules
from worker.engine.image_references import AllowList
from worker.execution.verbs import VerbRunner
from worker.model_server.client import ModelServer
from worker.model_server.results import ResultReader
from worker.service import build_containers, build_memory_watch, build_verbs

HOST = "host-1"
IMAGE = "modelyard/probe:local"

HTTP_HOOKS = Hooks(
    load=Hook(path="/load"),
    unload=Hook(path="/unload"),
    infer=Hook(path="/infer", body="{input}"),
    alive="/alive",
    ready="/ready",
)
BLIND_HOOKS = HTTP_HOOKS.model_copy(update={"ready": None})
PROCESS_HOOKS = Hooks(infer=Hook(path="/infer", body="{input}"), ready="/ready")


def model(profile: Profile = Profile.OPEN_INFERENCE, **more: Any) -> ModelSpec:
    """Return a model of the catalog."""
    fields: dict[str, Any] = {"name": "m-1", "image": IMAGE, "profile": profile, "port": 8080}
    if profile is Profile.BATCH:
        del fields["port"]
    if profile is Profile.HTTP:
        fields["hooks"] = HTTP_HOOKS
    if profile is Profile.PROCESS:
        fields["hooks"] = PROCESS_HOOKS
    return ModelSpec(**{**fields, **more})


class VerbHarness:
    """One host with one model; `do` performs a verb on job `job-1`."""

    def __init__(
        self,
        spec: ModelSpec | None = None,
        program: Program | None = None,
        *,
        allowed: tuple[str, ...] = ("*",),
        dataset_roots: tuple[str, ...] = (),
        volumes: tuple[str, ...] = ("*",),
    ) -> None:
        self.spec = spec or model()
        self.runtime = FakeRuntime(host_id=HOST)
        self.server = program if isinstance(program, FakeServer) else FakeServer()
        self.batch = program if isinstance(program, FakeBatch) else FakeBatch()
        chosen = program or self.server
        self.runtime.images[IMAGE] = lambda _: chosen
        if self.spec.profile is Profile.PROCESS:
            self.server.ready_from_start = True
        self.allowed = allowed
        self.dataset_roots = dataset_roots
        self.volumes = volumes
        self.reports: list[OperationReport] = []
        self._numbers = itertools.count(1)
        self.results = ResultReader()
        self.devices = FakeDevices()
        self.unload_rules = UnloadRules(within_s=0.2)
        self.operations = self.restarted()

    def restarted(self) -> VerbRunner:
        """Return operations that know nothing of what was done before."""
        server = ModelServer(self.runtime.model_servers)
        containers = build_containers(
            self.runtime,
            server,
            Datasets(self.runtime, self.dataset_roots, self.volumes),
            rules=PlanRules(host_id=HOST),
            allowed=AllowList(self.allowed),
            memory=build_memory_watch(self.runtime, self.devices, self.unload_rules),
        )
        self.operations = build_verbs(
            self.runtime, server, self.results, containers, cleanup_retry_s=0.01
        )
        return self.operations

    def command(
        self,
        verb: Verb,
        *,
        job: str = "job-1",
        generation: int = 1,
        epoch: int = 1,
        operation_id: str | None = None,
        dataset: DatasetSpec | None = None,
        timeout_s: float = 30.0,
        spec: ModelSpec | None = None,
        devices: tuple[str, ...] = (),
        **given: object,
    ) -> HostCommand:
        """Return a command; `input=` of any JSON type gives it an input."""
        return HostCommand(
            operation_id=operation_id or new_operation_id(),
            epoch=epoch,
            verb=verb,
            job_id=job,
            generation=generation,
            model=spec or self.spec,
            dataset=dataset,
            devices=devices,
            input_json=json.dumps(given["input"]) if "input" in given else None,
            input_id=cast("str | None", given.get("input_id")),
            stop_container=given.get("stop_container") is True,
            timeout_s=timeout_s,
        )

    async def do(self, verb: Verb, **more: Any) -> Outcome:
        """Perform one verb and return how it ended; its reports are in `reports`."""
        attempt = Attempt(self.command(verb, **more), self.reports.append)
        ending = await self.operations.perform(attempt)
        attempt.end(ending)
        return ending

    @property
    def container(self) -> FakeContainer:
        """The job's container of generation 1."""
        return self.runtime.named("modelyard-job-1-1")

    @property
    def phases(self) -> list[Phase]:
        """The phases that were reported, each once, in order."""
        told = [it.phase for it in self.reports if it.phase is not None]
        return [phase for phase, _ in itertools.groupby(told)]
