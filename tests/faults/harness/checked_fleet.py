"""A fleet to break, what a test needs to look at it, and the checker that every test ends with."""

import asyncio
import shutil
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
from pymongo import MongoClient

from deploy.local import engine_api
from deploy.local.docker_engine import DockerEngine
from deploy.local.mongodb import MongoDB
from deploy.local.processes import ProcessId
from deploy.local.rabbitmq import RabbitMQ
from deploy.local.services import Service
from modelyard.contract.states import JobState, OperationState
from modelyard.process.crash_points import CRASH_POINTS, VARIABLE, crash_line
from tests.e2e.catalog import PROBE, PROBES
from tests.e2e.fleet import Fleet
from tests.faults.harness.holdings import Holdings
from tests.faults.harness.load import Doors, Load, Mix, Request
from tests.support.invariants.checker import HEAL_WITHIN_S, Invariants, Violation
from tests.support.invariants.collector import Collector
from tests.support.invariants.ledger import Ledger
from tests.support.invariants.outside import Database, EngineView
from tests.support.invariants.processes import Holding
from tests.support.invariants.sampler import Sampler
from tests.support.servers.virtual_hosts import VirtualHosts
from tests.support.waiting import eventually

Json = dict[str, Any]
SLOTS = 6
DISPATCHERS = ("dispatcher", "dispatcher-2")
FAILED = Path(__file__).resolve().parents[3] / "var" / "tests" / "failed"
"""Keeps the logs of the newest sites in which something did not hold."""
FAILED_KEPT = 8
TOLD_S = 5
"""For a look into the log of a process that has ended: all that it said is there."""
BYSTANDER = "somebody=else"
"""Label of the containers that nobody of ours may touch (I10)."""


def points(*parts: str) -> list[str]:
    """Return the crash points of these parts of a service: `worker`, or `dispatcher.drain`."""
    return sorted(one for one in CRASH_POINTS if one.rpartition(".")[0] in parts)


@dataclass(frozen=True)
class Servers:
    """What a fleet runs on; started once a session."""

    rabbitmq: RabbitMQ
    mongodb: MongoDB
    engines: Mapping[str, DockerEngine]
    virtual_hosts: VirtualHosts
    collector: tuple[str, int]
    """Where the collector of whichever test runs listens."""


@dataclass
class Site:
    """A fleet on a virtual host and a database of its own; several tests may use it in turn."""

    servers: Servers
    processes: Fleet
    folder: Path
    ledger: Ledger = field(default_factory=Ledger)
    bystanders: dict[str, str] = field(default_factory=dict)
    held_first: dict[str, Holding] = field(default_factory=dict)
    """What each process held when it was seen first: what leaks bit by bit adds up."""
    intact: bool = True
    """False once something does not hold: nothing that follows could be believed."""

    def close(self) -> None:
        """Stop the fleet and remove what it has made."""
        self.processes.stop()
        self.servers.virtual_hosts.give_back(urlsplit(self.processes.amqp_url).path[1:])
        for host_id, engine in self.servers.engines.items():
            for label in (f"modelyard.host={host_id}", BYSTANDER):
                engine_api.remove_containers(engine.url, label)
        with MongoClient[Json](self.processes.mongo_url) as client:
            client.drop_database(client.get_default_database().name)
        if not self.intact:
            _keep_logs(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)


def _keep_logs(folder: Path) -> None:
    """Keep what the processes of a site said in which something went wrong."""
    FAILED.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        (folder / "log").rename(FAILED / folder.name)
    former = sorted(FAILED.iterdir(), key=lambda one: one.stat().st_mtime)[:-FAILED_KEPT]
    for one in former:
        shutil.rmtree(one)


def make_site(
    servers: Servers,
    folder: Path,
    *,
    dispatchers: int = 2,
    slots: int = SLOTS,
    settings: Callable[[str, str], Mapping[str, Mapping[str, str]]] | None = None,
) -> Site:
    """Prepare a fleet that does not run yet; `settings` is asked with the two servers' URLs."""
    amqp_url = f"{servers.rabbitmq.url}/{servers.virtual_hosts.take()}"
    mongo_url = servers.mongodb.url.replace("/modelyard?", f"/faults_{uuid.uuid4().hex[:12]}?")
    own = folder / f"site-{uuid.uuid4().hex[:8]}"
    processes = Fleet(
        own,
        amqp_url=amqp_url,
        mongo_url=mongo_url,
        engines=servers.engines,
        dispatchers=dispatchers,
        slots=slots,
        settings=settings(amqp_url, mongo_url) if settings else None,
    )
    return Site(servers, processes, own)


@dataclass
class CheckedFleet:
    """One test's view of a site."""

    site: Site
    http: httpx2.AsyncClient
    doors: Doors
    engines: dict[str, EngineView]
    database: Database
    collector: Collector
    invariants: Invariants
    holdings: Holdings
    checked: bool = False
    violations: list[Violation] = field(default_factory=list)
    _incarnations: dict[str, str] = field(default_factory=dict)
    """The boot that each host had when a process was launched last."""
    _boots: dict[str, ProcessId] = field(default_factory=dict)
    """What was launched last under each name, also once it has ended."""

    @property
    def processes(self) -> Fleet:
        """The processes."""
        return self.site.processes

    @property
    def servers(self) -> Servers:
        """What they run on."""
        return self.site.servers

    @property
    def vhost(self) -> str:
        """RabbitMQ's virtual host."""
        return urlsplit(self.processes.amqp_url).path.removeprefix("/")

    def service(self, name: str) -> Service:
        """Return one process."""
        return self.processes.services[name]

    def job_id(self) -> str:
        """Return a name that no other test uses."""
        return f"job-{uuid.uuid4().hex[:10]}"

    async def put_model(self, name: str, **spec: Any) -> None:
        """Put a variant of the probe into the catalog; it knows the collector."""
        env = {**spec.pop("env", {}), "MODELYARD_COLLECTOR": self.collector.address}
        spec = {"image": PROBE, "stop_grace_s": 0, **spec, "env": env}
        answer = await self.http.put(f"/v1/models/{name}", json=spec)
        assert answer.status_code in (200, 201), answer.text

    async def put_probe(self, name: str, base: str = "probe-http", **changes: Any) -> None:
        """Put a model into the catalog that differs from one of the usual probes."""
        await self.put_model(name, **{**PROBES[base], **changes})

    async def load(self, mix: Mix | None = None, **more: Any) -> Load:
        """Return a load whose models are in the catalog."""
        made = Load(self.doors, mix or Mix(), **more)
        for name, spec in made.batch_models():
            await self.put_model(name, **spec)
        return made

    async def submit(self, verb: str, job_id: str, *, key: str = "", **fields: Any) -> str:
        """Submit one request by HTTP until it is accepted; return its operation's id."""
        body = {"job_id": job_id, "operation_type": verb, **fields}
        return await self.doors.submit(Request(key or uuid.uuid4().hex, body))

    async def ended(self, operation_id: str, *, within_s: float = HEAL_WITHIN_S) -> Json:
        """Return an operation's document once it has ended."""

        async def end() -> Json | None:
            for one in await self.database.all("operations", {"_id": operation_id}):
                if OperationState(one["state"]).terminal:
                    return one
            return None

        return await eventually(end, within_s=within_s, what=f"the end of {operation_id}")

    async def do(self, verb: str, job_id: str, **fields: Any) -> Json:
        """Submit one request and return its operation at its end."""
        return await self.ended(await self.submit(verb, job_id, **fields))

    async def done(self, verb: str, job_id: str, **fields: Any) -> Json:
        """Submit one request that has to succeed."""
        one = await self.do(verb, job_id, **fields)
        assert one["state"] == "SUCCEEDED", one
        return one

    async def loaded(self, job_id: str, **fields: Any) -> Json:
        """Bring a job to LOADED and return its document."""
        await self.done("DEPLOY_CREATE", job_id, **{"model": "load-http", **fields})
        await self.done("DEPLOY_LOAD", job_id)
        return await self.job(job_id)

    async def job(self, job_id: str) -> Json:
        """Return a job's document."""
        (found,) = await self.database.all("jobs", {"_id": job_id})
        return found

    async def host(self, host_id: str) -> Json:
        """Return a host's document."""
        (found,) = await self.database.all("hosts", {"_id": host_id})
        return found

    async def states(self, operation_ids: list[str]) -> Counter[str]:
        """Count the states of operations."""
        found = await self.database.all("operations", {"_id": {"$in": operation_ids}}, "state")
        return Counter(one["state"] for one in found)

    async def running(self, tag: str) -> None:
        """Return once the collector has seen a run of this tag."""

        async def runs() -> bool:
            return bool(self.collector.of(tag))

        await eventually(runs, within_s=40, what=f"the run of {tag}")

    async def succeeded(self, operation_ids: list[str]) -> None:
        """Wait for the end of all of these; the assertion tells what became of the others."""
        wanted = {"_id": {"$in": operation_ids}}

        async def ends() -> list[Json] | None:
            found = await self.database.all("operations", wanted)
            ended = all(OperationState(one["state"]).terminal for one in found)
            return found if ended and len(found) == len(set(operation_ids)) else None

        try:
            found = await eventually(ends, within_s=HEAL_WITHIN_S, what="the end of all of these")
        except AssertionError:
            found = await self.database.all("operations", wanted)
        others = [
            f"{one['verb']} of {one['job_id']} by {one['source']}, line {one.get('line')}: "
            f"{one['state']} {(one.get('error') or {}).get('code')}"
            for one in sorted(found, key=lambda one: (one["job_id"], one.get("line") or 0))
            if one["state"] != OperationState.SUCCEEDED
        ]
        assert not others, "\n".join(["", *others])
        assert len(found) == len(set(operation_ids))

    async def running_any(self) -> None:
        """Return once the collector sees something run that has not ended."""

        async def one() -> bool:
            return any(run.ended is None for run in self.collector.runs)

        await eventually(one, within_s=40, what="a run")

    async def running_state(self, operation_id: str) -> Json:
        """Return an operation's document once it is recorded as RUNNING."""

        async def runs() -> Json | None:
            found = await self.database.all("operations", {"_id": operation_id})
            return found[0] if found and found[0]["state"] == "RUNNING" else None

        return await eventually(runs, within_s=40, what=f"{operation_id} RUNNING")

    async def ready(self, *, within_s: float = 40) -> None:
        """Return once the gateway has both stores."""

        async def it_is() -> bool:
            try:
                answer = await self.http.get("/readyz", timeout=5)
            except httpx2.HTTPError:
                return False
            return answer.is_success and answer.json()["status"] == "ready"

        await eventually(it_is, within_s=within_s, what="a ready gateway")

    async def online(self, name: str, *, within_s: float = 60) -> None:
        """Return once this very boot of a worker is recorded."""
        host_id = name.removeprefix("worker-")
        before = self._incarnations.get(host_id)

        async def it_is() -> bool:
            host = await self.host(host_id)
            return bool(host["liveness"] == "ONLINE" and host["incarnation"] != before)

        await eventually(it_is, within_s=within_s, what=f"{host_id} online")

    async def liveness(self, host_id: str, wanted: str, *, within_s: float = 60) -> None:
        """Return once a host has this liveness."""

        async def has_it() -> bool:
            return bool((await self.host(host_id))["liveness"] == wanted)

        await eventually(has_it, within_s=within_s, what=f"{host_id} {wanted}")

    async def gone(self, name: str, *, within_s: float = 60) -> None:
        """Return once a process has ended."""

        async def it_is() -> bool:
            return not self.service(name).running

        await eventually(it_is, within_s=within_s, what=f"the end of {name}")

    async def launch(self, name: str, **environment: str) -> None:
        """Start a process that does not run."""
        for host in await self.database.all("hosts", None, "incarnation"):
            self._incarnations[host["_id"]] = host.get("incarnation", "")
        self.holdings.boots(name)
        await asyncio.to_thread(self.processes.launch, name, **environment)
        process = self.service(name).daemon.process
        assert process is not None, f"{name} has ended at once"
        self._boots[name] = process
        self.invariants.disturbed()

    async def stop(self, *names: str) -> None:
        """Stop processes in an orderly way."""
        await asyncio.gather(*(asyncio.to_thread(self.service(name).stop) for name in names))
        self.invariants.disturbed()

    async def kill(self, *names: str) -> None:
        """SIGKILL processes."""
        await asyncio.gather(*(asyncio.to_thread(self.service(name).kill) for name in names))
        self.invariants.disturbed()

    async def restart(self, *names: str) -> None:
        """Kill and start processes."""
        await self.kill(*names)
        for name in names:
            await self.launch(name)

    @asynccontextmanager
    async def dispatcher_dies_at(self, point: str) -> AsyncIterator[None]:
        """Have one dispatcher, which has to come to this point and die there; then two again."""
        await self.stop(*DISPATCHERS)
        await self.launch("dispatcher", **{VARIABLE: point})
        yield
        await self.died_at("dispatcher", point)
        await self.launch("dispatcher-2")
        await self.launch("dispatcher")

    async def came_to(self, name: str, point: str, *, within_s: float = 60) -> None:
        """Return once this boot of a process has come to the point that it is armed with."""
        line = crash_line(point, self._boots[name].pid)
        log = self.service(name).daemon.log

        async def it_did() -> bool:
            return line in await asyncio.to_thread(log.read_text, errors="replace")

        await eventually(it_did, within_s=within_s, what=line.strip())

    async def died_at(self, name: str, wish: str, *, within_s: float = 60) -> None:
        """Return once this boot of a process has ended, and of what it was armed with alone."""
        await self.gone(name, within_s=within_s)
        await self.came_to(name, wish.partition(":")[0], within_s=TOLD_S)

    @contextmanager
    def frozen(self, *names: str) -> Iterator[None]:
        """Freeze processes meanwhile (SIGSTOP)."""
        for name in names:
            self.service(name).pause()
        try:
            yield
        finally:
            for name in names:
                self.service(name).resume()
            self.invariants.disturbed()

    async def holds(self, *, within_s: float = HEAL_WITHIN_S) -> None:
        """Check everything; what every test ends with."""
        self.checked = True
        self.violations = await self.invariants.check(within_s=within_s)
        assert not self.violations, "\n".join(["", *map(str, self.violations)])

    async def clear(self) -> None:
        """Terminate the jobs that live, so that the next test has room."""
        live = [state for state in JobState if state.live]
        jobs = await self.database.all("jobs", {"state": {"$in": live}}, "_id")
        ids = [await self.submit("TERMINATE", job["_id"]) for job in jobs]
        for operation_id in ids:
            await self.ended(operation_id)


@asynccontextmanager
async def open_checked_fleet(site: Site) -> AsyncIterator[CheckedFleet]:
    """Give a test its view of a site whose fleet runs."""
    processes, servers = site.processes, site.servers
    async with AsyncExitStack() as stack:
        collector = await stack.enter_async_context(Collector(*servers.collector))
        http = httpx2.AsyncClient(base_url=processes.url, timeout=30, trust_env=False)
        await stack.enter_async_context(http)
        database = Database(processes.mongo_url)
        stack.push_async_callback(database.close)
        doors = Doors(url=processes.url, amqp_url=processes.amqp_url, ledger=site.ledger)
        stack.push_async_callback(doors.close)
        engines = {host_id: EngineView(engine) for host_id, engine in servers.engines.items()}
        for engine in engines.values():
            stack.push_async_callback(engine.close)
        sampler = Sampler(database)
        holdings = Holdings(processes, site.held_first)
        holdings.look()
        invariants = Invariants(
            database=database,
            rabbitmq=servers.rabbitmq,
            amqp_url=processes.amqp_url,
            engines=engines,
            ledger=site.ledger,
            collector=collector,
            sampler=sampler,
            holdings=holdings.now,
            dispatchers=len(processes.dispatchers),
            working=processes.working_hosts,
            bystanders=site.bystanders,
            held_before=holdings.first,
        )
        fleet = CheckedFleet(site, http, doors, engines, database, collector, invariants, holdings)
        await _prepare(fleet)
        for watching in (sampler.run(), holdings.run()):
            stack.push_async_callback(_end, asyncio.create_task(watching))
        yield fleet


async def _prepare(fleet: CheckedFleet) -> None:
    """Put the models of a load into the catalog, and somebody else's container on each engine."""
    await fleet.put_probe("load-http", max_concurrency=2, resources={"gpus": 1, "gpu_memory": "1g"})
    if fleet.site.bystanders:
        return
    for host_id, engine in fleet.engines.items():
        name = f"bystander-{uuid.uuid4().hex[:8]}"
        config = {
            "Image": PROBE,
            "Labels": {**dict([BYSTANDER.split("=")]), "modelyard.job": "not-ours"},
            "HostConfig": {"RestartPolicy": {"Name": "always"}},  # engines are restarted too
        }
        fleet.site.bystanders[host_id] = await engine.create(name, config, start=True)


async def _end(task: asyncio.Task[None]) -> None:
    while not task.done():
        task.cancel()  # the driver may take a cancellation for a lost connection
        await asyncio.wait((task,), timeout=1)
    if not task.cancelled() and (error := task.exception()):
        raise error


async def lasts(seconds: float) -> None:
    """Let a fault go on for as long as it is said to; nothing is waited for by this."""
    await asyncio.sleep(seconds)
