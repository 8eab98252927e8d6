"""Everything that runs in one example, and the ways to break and mend it."""

import asyncio
import contextvars
import random
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, replace
from typing import Any

from gateway.service import Gateway
from modelyard.contract.ids import new_operation_id, operation_id_for_key
from modelyard.contract.messages import JobRequest
from modelyard.contract.states import Admission
from modelyard.contract.topology import HOSTS, JOBS, REPORTS, REPORTS_QUEUE
from modelyard.process.crash_points import CRASH_POINTS
from tests.fakes.broker import MemoryBroker, MemoryRabbit
from tests.fakes.broker_links import Link
from tests.fakes.broker_queues import Letter
from tests.fakes.mongodb import MemoryDatabase
from tests.fakes.runtime import FakeContainer
from tests.fakes.store import MemoryStore
from tests.statemachine.catalog import DATASETS, MANNERS, MODELS, PULLED
from tests.statemachine.engine import Engine, EngineWay, ModelProgram, RunLog
from tests.statemachine.loop import Process, VirtualLoop, current_process
from tests.statemachine.members import (
    ANSWERED_WITHIN_S,
    FrontDoor,
    Member,
    run_dispatcher,
    run_gateway,
    run_worker,
)
from tests.statemachine.watching import Watching
from worker.engine.plan import ContainerPlan
from worker.engine.protocol import EngineUnavailableError
from worker.settings import DeclaredDevice

SLOTS = {"h1": 2, "h2": 1}
DEVICES = {
    host_id: (DeclaredDevice(uuid=f"GPU-{host_id}", memory=size),)
    for host_id, size in (("h1", "8g"), ("h2", "4g"))
}
CONNECTION_DIES_S = 25.0
"""Seconds after which RabbitMQ gives up a client that does not answer its heartbeats."""
REMEMBERED = 30
"""Messages of each exchange that may be brought again."""


@dataclass(frozen=True, slots=True)
class Jitter:
    """How long messages on the network take."""

    at_once: float
    """The share of them that take no time."""
    most_s: float
    """Seconds that the others take at the most, but for one in a hundred."""


CALM = Jitter(0.8, 0.01)
JITTERS = (CALM, CALM, Jitter(0.5, 0.1), Jitter(0.3, 0.5))


class Killed(BaseException):
    """The process ends here, and nothing in it may catch it."""


class World:
    """One fleet in memory: two hosts, up to two dispatchers, and a gateway that never breaks."""

    def __init__(self, loop: VirtualLoop, seed: int, jitter: Jitter = CALM) -> None:
        self.loop = loop
        self.jitter = jitter
        self._random = random.Random(seed)
        self.database = MemoryDatabase(loop.time)
        self.watching = Watching()
        self.database.watchers.append(self.watching.on_write)
        self.rabbit = MemoryRabbit()
        self._remember_what_is_published()
        self.runs = RunLog()
        self.manners = {name: replace(one) for name, one in MANNERS.items()}
        self.engines = {host_id: self._engine(host_id) for host_id in SLOTS}
        self.slow_s: dict[str, list[float]] = {host_id: [0.0] for host_id in SLOTS}
        self.members: list[Member] = []
        """Dispatchers and workers that live, in the order in which they were started."""
        self.workers: dict[str, Member] = {}
        self.traps: dict[str, bool] = {}
        """Crash points at which the next one dies; true: is only frozen."""
        self.store_up = True
        self.broker_up = True
        self._starts: Counter[str] = Counter()
        self._keys = 0
        self.front = FrontDoor(self._store(), self._broker("gateway"))
        self.accepted: set[str] = set()
        self.unknown: set[str] = set()
        self.asked: dict[str, JobRequest] = {}
        """By idempotency key."""
        self.inputs_shared: set[str] = set()
        """Operations whose input another one has, too."""
        self.died: list[str] = []
        """Processes that ended by themselves."""
        loop.run(self._prepare())

    # --- building ---

    def _engine(self, host_id: str) -> Engine:
        engine = Engine(self.loop, host_id=host_id)
        engine.add_volume("volume")
        for name in MANNERS:
            held = engine.registry if name in PULLED else engine.images
            held[MODELS[name].image] = self._program
        engine.add_foreign("somebody-elses")
        return engine

    def _program(self, plan: ContainerPlan) -> ModelProgram:
        name = plan.image.rpartition("/")[2].partition(":")[0]
        batch = MODELS[name].port is None
        program = ModelProgram(self.loop, self.runs, self.manners[name], plan, batch=batch)
        program.ready_from_start = name == "process"
        return program

    async def _prepare(self) -> None:
        store = MemoryStore(self.database)
        for model in MODELS.values():
            await store.models.put(model)
        for dataset in DATASETS:
            await store.datasets.put(dataset)

    async def pause(self) -> None:
        """Take as long as a message on the network does; now and then that is long."""
        luck = self._random.random()
        if luck < self.jitter.at_once:
            await asyncio.sleep(0)
        else:
            most_s = self.jitter.most_s if luck < 0.99 else 0.4
            await asyncio.sleep(self._random.uniform(0.0, most_s))

    def _store(self) -> MemoryStore:
        store = MemoryStore(self.database, link=Link(pause=self.pause))
        store.link.up = self.store_up
        return store

    def _broker(self, name: str) -> MemoryBroker:
        broker = MemoryBroker(self.rabbit, name=name, link=Link(pause=self.pause))
        broker.link.up = self.broker_up
        return broker

    def _remember_what_is_published(self) -> None:
        self.published: dict[str, list[Letter]] = {one.name: [] for one in (JOBS, HOSTS, REPORTS)}
        route = self.rabbit.route

        def remember(letter: Letter) -> int:
            if letter.exchange == REPORTS.name and letter.body:  # a question has none
                self.watching.on_reports(letter.body)
            if letter.exchange in self.published:
                kept = self.published[letter.exchange]
                kept.append(letter)
                del kept[:-REMEMBERED]
            return route(letter)

        self.rabbit.route = remember  # type: ignore[method-assign]
        self._route = route

    # --- processes ---

    @property
    def dispatchers(self) -> list[Member]:
        """The dispatchers that live, frozen ones among them."""
        workers = list(self.workers.values())
        return [one for one in self.members if one not in workers]

    def leading_dispatcher(self) -> Member | None:
        """Return the one that the workers' reports go to now."""
        queue = self.rabbit.queues.get(REPORTS_QUEUE.name)
        active = queue.consumers[:1] if queue is not None else []
        return next(
            (one for one in self.dispatchers if any(one.broker.has(it) for it in active)), None
        )

    def start_dispatcher(self) -> Member:
        """Start one more."""
        self._starts["d"] += 1
        name = f"d{self._starts['d']}"
        member = run_dispatcher(self.loop, Process(name), self._store(), self._broker(name))
        return self._started(member)

    def start_worker(self, host_id: str) -> Member:
        """Start the worker of a host that has none."""
        self._starts[host_id] += 1
        name = f"{host_id}.{self._starts[host_id]}"
        way = EngineWay(self.loop, self.engines[host_id], self.pause, self.slow_s[host_id])
        member = run_worker(
            self.loop,
            Process(name),
            way,
            self._broker(name),
            slots=SLOTS[host_id],
            devices=DEVICES[host_id],
        )
        self.workers[host_id] = member
        return self._started(member)

    def start_gateway(self) -> tuple[Member, Gateway]:
        """Start one beside the stand-in; nothing here breaks it."""
        return run_gateway(self.loop, Process("g"), self._store(), self._broker("g"))

    def kill(self, member: Member) -> None:
        """End a process where it stands."""
        member.kill()
        self.members.remove(member)
        self.workers = {key: one for key, one in self.workers.items() if one is not member}

    def freeze(self, member: Member) -> None:
        """Stop a process; RabbitMQ waits a while and then gives up its connections."""
        member.process.held_back = True

        def give_up() -> None:
            if member.frozen:
                member.broker.cut()

        self.loop.call_later(CONNECTION_DIES_S, give_up, context=contextvars.Context())

    def thaw(self, member: Member) -> None:
        """Let a frozen process go on."""
        self.loop.go_on(member.process)

    def crash_point(self, name: str) -> None:
        """Stand in the place of `modelyard.process.crash_points.crash_point`."""
        process = current_process()
        member = next((one for one in self.members if one.process is process), None)
        if name not in CRASH_POINTS:
            self.died.append(f"{name} is no crash point")
        if member is None or name not in self.traps:
            return
        if self.traps.pop(name):
            self.freeze(member)
        else:
            self.kill(member)
            raise Killed(name)

    def _started(self, member: Member) -> Member:
        self.members.append(member)

        def ended(task: asyncio.Task[None]) -> None:
            if not member.alive or task.cancelled():
                return
            if _without_an_engine(task.exception()):
                self.kill(member)  # a worker whose engine is not there at its start gives up
            else:
                self.died.append(f"{member.process.name} ended by itself: {task.exception()!r}")

        if member.task is not None:
            member.task.add_done_callback(ended, context=contextvars.Context())
        return member

    # --- servers ---

    def set_store(self, *, up: bool) -> None:
        """Take the database away, or bring it back."""
        self.store_up = up
        for link in self._store_links():
            link.up = up

    def set_broker(self, *, up: bool) -> None:
        """Take the broker away, or bring it back. What is durable stays."""
        self.broker_up = up
        for link in self._broker_links():
            link.up = up
        if not up:
            self.rabbit.close_connections()

    def cut(self, member: Member) -> None:
        """Cut one process off from the broker."""
        member.broker.link.up = False
        member.broker.cut()

    def join(self, member: Member) -> None:
        """End the cut."""
        member.broker.link.up = self.broker_up

    def end_the_lease(self) -> None:
        """End the leader's lease early, as a jump of the database's clock would.

        Another dispatcher may lead then, while the former leader does not know it yet.
        """
        for lease in self.database.documents("leases"):
            self.database.write("leases", {**lease, "expires_at": self.database.now})

    def again(self, exchange: str, index: int) -> None:
        """Bring a message again that was published before."""
        kept = self.published[exchange]
        if kept:
            self._route(kept[index % len(kept)])

    def heal(self) -> None:
        """Mend everything."""
        self.jitter = CALM
        self.set_store(up=True)
        self.set_broker(up=True)
        self.traps.clear()
        for member in self.members:
            for link in member.links:
                link.fates.clear()
                link.slow_s = 0.0
                link.up = True
            if member.frozen:
                self.thaw(member)
        if not self.dispatchers:
            self.start_dispatcher()
        for name, manners in self.manners.items():
            manners.takes_s = min(2.0, MANNERS[name].takes_s)
        for host_id, engine in self.engines.items():
            engine.available = True
            engine.disk_full = engine.refuses_creates = False
            engine.pull_fault = None
            self.slow_s[host_id][0] = 0.0
            if host_id not in self.workers:
                self.start_worker(host_id)
        # What was asked of a host before may still be on its way, and would close it again.
        self.loop.advance(ANSWERED_WITHIN_S)
        self.loop.run(self._open_hosts())

    async def _open_hosts(self) -> None:
        for host_id in SLOTS:
            await self.front.store.hosts.admit(host_id, Admission.OPEN)

    def _store_links(self) -> Iterator[Link]:
        yield self.front.store.link
        for member in self.members:
            if member.store is not None:
                yield member.store.link

    def _broker_links(self) -> Iterator[Link]:
        yield self.front.broker.link
        for member in self.members:
            yield member.broker.link

    # --- clients ---

    def submit(self, fields: dict[str, Any], *, key: str | None = None) -> str:
        """Ask for an operation; return its key. Its input, if it has one, names it."""
        if key is None:
            self._keys += 1
            key = f"key-{self._keys}"
        operation_id = operation_id_for_key(key)
        if fields.get("input") is not None:
            fields = {**fields, "input": {"operation": operation_id}}
        request = JobRequest.model_validate(fields)
        self.asked.setdefault(key, request)
        self._ask(operation_id, request)
        return key

    def retry(self, key: str) -> None:
        """Ask for an operation that ended without success once more, as the gateway does."""
        self._do(self._retry(operation_id_for_key(key), self.asked[key]))

    def _ask(self, operation_id: str, request: JobRequest, retry_of: str | None = None) -> None:
        if operation_id not in self.accepted:
            self.unknown.add(operation_id)

        async def ask() -> None:
            if await self.front.submit(operation_id, request, retry_of=retry_of):
                self.accepted.add(operation_id)
                self.unknown.discard(operation_id)

        self._do(ask())

    async def _retry(self, operation_id: str, request: JobRequest) -> None:
        found = await self.front.find(operation_id)
        if found is not None and found.state.terminal and found.state != "SUCCEEDED":
            self.inputs_shared.add(operation_id)
            self._ask(new_operation_id(), request, retry_of=operation_id)

    def cancel(self, key: str) -> None:
        """Ask for an operation to be cancelled."""
        self._do(self.front.cancel(operation_id_for_key(key)))

    def publish(self, body: bytes, key: str | None = None) -> None:
        """Publish something on the jobs exchange."""
        self._do(self.front.publish_raw(body, key))

    def drain(self, host_id: str, *, move: bool, deadline_s: float | None) -> None:
        """Begin to drain a host."""
        self._do(
            self.front.tell_hosts(
                lambda store: store.hosts.drain(host_id, move=move, deadline_s=deadline_s)
            )
        )

    def admit(self, host_id: str, admission: Admission) -> None:
        """Cordon a host, or open it."""
        self._do(self.front.tell_hosts(lambda store: store.hosts.admit(host_id, admission)))

    def _do(self, work: Coroutine[Any, Any, object]) -> None:
        self.loop.serve(work)

    # --- containers ---

    def containers(self, host_id: str) -> list[FakeContainer]:
        """Return our containers on a host, by name."""
        own = [one for one in self.engines[host_id].containers.values() if one.plan is not None]
        return sorted(own, key=lambda one: one.name)


def _without_an_engine(error: BaseException | None) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_without_an_engine(one) for one in error.exceptions)
    return isinstance(error, EngineUnavailableError)
