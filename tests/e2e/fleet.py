"""A whole Modelyard of real processes, seen from outside: HTTP, AMQP and the engines' own word."""

import asyncio
import itertools
import json
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from deploy.local.docker_engine import DockerEngine
from deploy.local.ports import LOOPBACK, free_port
from deploy.local.services import Service, gateway_ready, host_online
from deploy.local.waiting import wait_until
from modelyard.contract.ids import operation_id_for_key
from modelyard.contract.states import OperationState

ROOT = Path(__file__).resolve().parents[2]
DEVICES = ("8g", "4g")
"""The memory of the devices that each host declares."""
WAIT_S = 20
END_WITHIN_S = 90.0

Json = dict[str, Any]


class Fleet:
    """A gateway, dispatchers, and a worker for each engine.

    What the processes connect to is given once for all in `amqp_url` and `mongo_url`; `settings`
    has what is different for one of them, by its name: `gateway`, `dispatcher`, `dispatcher-2`
    (and so on), `worker-HOST`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        amqp_url: str,
        mongo_url: str,
        engines: Mapping[str, DockerEngine],
        dispatchers: int = 1,
        slots: int = 6,
        settings: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.amqp_url = amqp_url
        self.mongo_url = mongo_url
        self.engines = engines
        self.slots = slots
        self.datasets = folder / "datasets"
        self.port = free_port()
        self.url = f"http://{LOOPBACK}:{self.port}"
        self._settings = settings or {}

        def service(module: str, name: str) -> Service:
            return Service(module, root=ROOT, folder=folder, logs=folder / "log", name=name)

        self.gateway = service("gateway", "gateway")
        names = ["dispatcher", *(f"dispatcher-{n}" for n in range(2, dispatchers + 1))]
        self.dispatchers = {name: service("dispatcher", name) for name in names}
        self.dispatcher = self.dispatchers["dispatcher"]
        self.workers = {name: service("worker", f"worker-{name}") for name in engines}
        self.metrics_ports = {name: free_port() for name in self.services}

    @property
    def services(self) -> dict[str, Service]:
        """All processes by name."""
        workers = {f"worker-{host}": one for host, one in self.workers.items()}
        return {"gateway": self.gateway, **self.dispatchers, **workers}

    def metrics_url(self, name: str) -> str:
        """Return where a process is scraped."""
        return f"http://{LOOPBACK}:{self.metrics_ports[name]}/metrics"

    def working_hosts(self) -> list[str]:
        """Return the hosts whose worker runs."""
        return [host_id for host_id, worker in self.workers.items() if worker.running]

    def start(self) -> None:
        """Start all processes; return when every host is online."""
        self.datasets.mkdir(parents=True, exist_ok=True)
        for name in self.services:
            self.launch(name)
        self.wait_online()

    def launch(self, name: str, **more: str) -> None:
        """Start one process that does not run, without waiting; `more` goes to its environment."""
        kind = name.partition("-")[0].upper()
        scraped = {f"MODELYARD_{kind}_METRICS_ADDRESS": f"{LOOPBACK}:{self.metrics_ports[name]}"}
        environment = {**self._environment(name), **scraped, **self._settings.get(name, {}), **more}
        self.services[name].launch(environment)

    def wait_online(self, seconds: float = 60) -> None:
        """Return when the gateway is ready and every host online; no process may exit meanwhile."""

        def ready() -> bool:
            for service in self.services.values():
                service.daemon.check()
            return gateway_ready(self.url) and all(
                host_online(self.url, host_id) for host_id in self.workers
            )

        wait_until(ready, seconds, "the fleet")

    def stop(self) -> None:
        """Stop all processes."""
        for service in reversed(self.services.values()):
            service.daemon.terminate()
        for service in reversed(self.services.values()):
            service.stop()

    def _environment(self, name: str) -> dict[str, str]:
        broker = {"MODELYARD_AMQP_URL": self.amqp_url}
        stores = {**broker, "MODELYARD_MONGO_URL": self.mongo_url}
        if name == "gateway":
            listening = {"MODELYARD_GATEWAY_HOST": LOOPBACK}
            return stores | listening | {"MODELYARD_GATEWAY_PORT": str(self.port)}
        if name in self.dispatchers:
            # So all hosts have something to do.
            return stores | {"MODELYARD_DISPATCHER_PLACEMENT": "spread"}
        host_id = name.removeprefix("worker-")
        return broker | {
            "MODELYARD_HOST_ID": host_id,
            "MODELYARD_WORKER_SLOTS": str(self.slots),
            # Only the slots and the devices limit what runs on the test's small machine.
            "MODELYARD_WORKER_CPUS": "1000",
            "MODELYARD_WORKER_MEMORY": "1t",
            "MODELYARD_WORKER_DEVICES": json.dumps(
                [
                    {"uuid": f"GPU-{host_id}-{index}", "index": index, "memory": size}
                    for index, size in enumerate(DEVICES)
                ]
            ),
            "MODELYARD_WORKER_LABELS": json.dumps({"name": host_id}),
            "MODELYARD_WORKER_DATASET_ROOTS": json.dumps([str(self.datasets)]),
            "MODELYARD_WORKER_ALLOWED_IMAGES": '["*"]',
            "MODELYARD_WORKER_ALLOWED_VOLUMES": '["ds-*"]',
            "DOCKER_HOST": self.engines[host_id].url,
        }


@asynccontextmanager
async def a_user_of(fleet: Fleet) -> AsyncIterator["User"]:
    """Connect someone who uses the fleet."""
    async with httpx2.AsyncClient(base_url=fleet.url, timeout=30, trust_env=False) as http:
        yield User(fleet, http)


@dataclass
class User:
    """Someone who uses the fleet over HTTP; every job has a name of its own."""

    fleet: Fleet
    http: httpx2.AsyncClient
    _names: "itertools.count[int]" = field(default_factory=itertools.count)

    def job_id(self) -> str:
        """Return a name that no other test uses."""
        return f"job-{uuid.uuid4().hex[:8]}-{next(self._names)}"

    async def put_model(self, name: str, **spec: Any) -> None:
        """Put a model into the catalog."""
        answer = await self.http.put(f"/v1/models/{name}", json=spec)
        assert answer.status_code in (200, 201), answer.text

    async def put_dataset(self, name: str, **spec: Any) -> None:
        """Put a dataset into the catalog."""
        answer = await self.http.put(f"/v1/datasets/{name}", json=spec)
        assert answer.status_code in (200, 201), answer.text

    async def submit(self, verb: str, job_id: str, **fields: Any) -> str:
        """Submit one request and return its operation's id."""
        body = {"job_id": job_id, "operation_type": verb, **fields}
        answer = await self.http.post("/v1/jobs", json=body)
        assert answer.status_code == 202, answer.text
        operation_id: str = answer.json()["operation_id"]
        assert answer.headers["Location"].endswith(f"/v1/operations/{operation_id}")
        return operation_id

    async def ended(self, operation_id: str) -> Json:
        """Return an operation once it has ended, by waiting polls."""
        async with asyncio.timeout(END_WITHIN_S):
            while True:
                answer = await self.http.get(
                    f"/v1/operations/{operation_id}", params={"wait": WAIT_S}
                )
                if answer.status_code == 404:
                    await asyncio.sleep(0.05)
                    continue
                assert answer.is_success, answer.text
                view: Json = answer.json()
                if OperationState(view["state"]).terminal:
                    return view

    async def do(self, verb: str, job_id: str, **fields: Any) -> Json:
        """Submit one request and return its operation at its end."""
        return await self.ended(await self.submit(verb, job_id, **fields))

    async def done(self, verb: str, job_id: str, **fields: Any) -> Json:
        """Submit one request that has to succeed."""
        view = await self.do(verb, job_id, **fields)
        assert view["state"] == "SUCCEEDED", view
        return view

    async def result(self, operation_id: str) -> Any:
        """Return the stored answer of an operation."""
        answer = await self.http.get(f"/v1/operations/{operation_id}/result")
        assert answer.is_success, answer.text
        return answer.json()

    async def job(self, job_id: str) -> Json:
        """Return a job."""
        answer = await self.http.get(f"/v1/jobs/{job_id}")
        assert answer.is_success, answer.text
        view: Json = answer.json()
        return view

    async def publish(self, body: Any, *, key: str, raw: bytes | None = None) -> str:
        """Publish by `amqp-publish`, as a shell script would; return the operation's id."""
        content = raw if raw is not None else json.dumps(body).encode()
        process = await asyncio.create_subprocess_exec(
            "amqp-publish",
            f"--url={self.fleet.amqp_url}",
            "--exchange=modelyard.jobs",
            "--routing-key=job.submit",
            "--persistent",
            "--content-type=application/json",
            f"--header=Idempotency-Key: {key}",
            f"--body={content.decode()}",
        )
        assert await process.wait() == 0
        return operation_id_for_key(key)


class Engine:
    """What a Docker Engine itself says of its containers."""

    def __init__(self, url: str) -> None:
        self._transport = httpx2.AsyncHTTPTransport(uds=url.removeprefix("unix://"))
        self._http = httpx2.AsyncClient(transport=self._transport, base_url="http://engine")

    async def containers(self, job_id: str) -> Sequence[Json]:
        """Return the containers of a job, also stopped ones."""
        filters = json.dumps({"label": [f"modelyard.job={job_id}"]})
        answer = await self._http.get("/containers/json", params={"all": "1", "filters": filters})
        found: list[Json] = answer.raise_for_status().json()
        return found

    async def inspect(self, container_id: str) -> Json:
        """Return all that is known of a container."""
        answer = await self._http.get(f"/containers/{container_id}/json")
        found: Json = answer.raise_for_status().json()
        return found

    async def stats_page(self, container_id: str) -> Json:
        """Return what the probe image counts."""
        facts = await self.inspect(container_id)
        ports = facts["NetworkSettings"]["Ports"]["8080/tcp"]
        async with httpx2.AsyncClient(trust_env=False) as http:
            answer = await http.get(f"http://{LOOPBACK}:{ports[0]['HostPort']}/stats")
        counted: Json = answer.raise_for_status().json()
        return counted

    async def kill(self, container_id: str) -> None:
        """Kill a container behind Modelyard's back."""
        (await self._http.post(f"/containers/{container_id}/kill")).raise_for_status()

    async def close(self) -> None:
        """Close the connection."""
        await self._http.aclose()
