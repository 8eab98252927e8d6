"""Parts of a leading dispatcher over a broker and a store in memory: for tests of one class."""

import asyncio
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry

from dispatcher.events import EventLog
from dispatcher.intake.first_pass import FirstPass
from dispatcher.intake.ordered_intake import OrderedIntake
from dispatcher.intake.positions import Positions
from dispatcher.leadership import Term
from dispatcher.metrics import DispatcherMetrics
from dispatcher.scheduling.commands import CommandPublisher
from dispatcher.scheduling.fleet import Fleet
from dispatcher.scheduling.footprints import LearnedFootprints
from dispatcher.scheduling.lines import Lines
from dispatcher.scheduling.memory import Memory
from dispatcher.scheduling.residency import Residents
from dispatcher.scheduling.scheduler import Scheduler
from modelyard.broker import DirectReply
from modelyard.contract.catalog.entries import ModelSpec, Profile
from modelyard.contract.messages import EngineFacts, HostOnline, JobRequest
from modelyard.contract.states import JobState, Verb
from modelyard.contract.topology import EVENTS, EXCHANGES, HOSTS, host_queue
from modelyard.store.records import NewOperation, OperationRecord
from tests.fakes.broker import MemoryBroker, MemoryRabbit
from tests.fakes.broker_links import Fate, Link
from tests.fakes.broker_queues import Letter
from tests.fakes.mongodb import MemoryDatabase
from tests.fakes.store import MemoryStore

HOST, INCARNATION, JOB = "h1", "boot-1", "j1"
MODEL = ModelSpec(name="m", image="m", profile=Profile.OPEN_INFERENCE, port=8080, max_concurrency=2)
ENDLESS = float("inf")
_numbers = itertools.count(1)
SWAP_WAIT_S = 10.0


class SlowAnswers(Link):
    """A link that holds answers back, once it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.held = asyncio.Event()
        """Set when an answer is held back."""
        self._open = asyncio.Event()
        self._open.set()
        self._only: int | None = None
        self._answers = 0

    def hold(self, *, only: int | None = None) -> None:
        """Hold back all answers from now on, or only that one of them, counted from 1."""
        self._only, self._answers = only, 0
        self.held.clear()
        self._open.clear()

    def let_go(self) -> None:
        """Deliver what was held back, and all that comes."""
        self._open.set()

    async def back(self, fate: Fate | None) -> None:
        self._answers += 1
        if self._only in (None, self._answers):
            if not self._open.is_set():
                self.held.set()
            await self._open.wait()
        await super().back(fate)


class DispatcherParts:
    """What the parts of a dispatcher share, with a record that tests can look at."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self.database = MemoryDatabase(self._clock)
        self.link = SlowAnswers()
        self.store = MemoryStore(self.database, link=self.link)
        rabbit = MemoryRabbit()
        self._published: list[Letter] = []
        self._route = rabbit.route
        rabbit.route = self._routed  # type: ignore[method-assign]
        self.broker = MemoryBroker(rabbit, name="parts")
        self.replies: list[tuple[DirectReply, dict[str, Any]]] = []
        """What publishers were told in queues of their own, each with the event in it."""
        self._reply = self.broker.reply
        self.broker.reply = self._replied  # type: ignore[method-assign]
        self.term = Term(1, ENDLESS)
        self.event_log = EventLog(
            self.store, self.broker, self.term, DispatcherMetrics(CollectorRegistry())
        )
        self.lines, self.fleet = Lines(self.store), Fleet(self.store)
        self.store.changes.listen(jobs=self.lines.forget, hosts=self.fleet.mark)
        self.footprints = LearnedFootprints(self.store)
        memory = self.memory = Memory(self.lines, self.fleet, self.footprints)
        self.positions = Positions(self.store, self.term)
        self.commands = CommandPublisher(self.broker, self.term, default_timeout_s=60.0)
        self.scheduler = Scheduler(
            self.store,
            self.event_log,
            self.commands,
            self.term,
            memory=memory,
            residency=Residents(self.store, memory, swap_wait_s=SWAP_WAIT_S),
        )
        self.woken: list[str] = []
        """Jobs for which the scheduler would be woken."""
        self.first_pass = FirstPass(
            self.store,
            self.event_log,
            self.commands,
            lines=self.lines,
            fleet=self.fleet,
            positions=self.positions,
        )
        self.ordered = OrderedIntake(
            self.store, self.event_log, positions=self.positions, wake=self.wake
        )

    async def begin(self) -> None:
        """Have a host come online, with a job whose model is loaded."""
        await self.broker.declare([host_queue(HOST)], exchanges=EXCHANGES)
        await self.come_online(HOST)
        self.load_job(JOB)

    async def come_online(self, host_id: str) -> None:
        """Record that a host's worker has booted."""
        engine = EngineFacts(version="20.10", api_version="1.41")
        online = HostOnline(slots=4, engine=engine)
        await self.store.hosts.come_online(host_id, INCARNATION, online)

    def load_job(self, job_id: str) -> None:
        """Have a job in the record as it is once its model is loaded."""
        document = {
            "_id": job_id,
            "state": JobState.LOADED,
            "version": 3,
            "generation": 1,
            "host_id": HOST,
            "container_id": "c" * 64,
            "spec": MODEL.model_dump_json(),
        }
        self.database.write("jobs", document)

    async def put_in_line(self, *new: NewOperation) -> None:
        """Record operations and put them in line, as another writer would."""
        places = await self.positions.take(len(new))
        await self.store.operations.take_in(list(zip(new, places, strict=True)))

    async def recorded(self, one: NewOperation) -> OperationRecord:
        """Return an operation as it is in the record."""
        found = await self.store.operation_queries.get(one.operation_id)
        assert found is not None
        return found

    async def in_line(self, job_id: str = JOB) -> list[str]:
        """Return the ids of a job's operations that are in line, in the record's order."""
        lines = await self.store.jobs.lines([job_id])
        return [one.operation_id for line in lines.lines for one in line.operations]

    async def memory_is_as_the_record(self, job_id: str = JOB) -> bool:
        """Tell whether what is in memory of a job, if anything, is what the record has."""
        held = self.lines.line(job_id)
        there = await self.store.jobs.lines([job_id])
        return held is None or [_facts(one) for one in held.operations] == [
            _facts(one) for line in there.lines for one in line.operations
        ]

    def wake(self, job_ids: Iterable[str]) -> None:
        """Stand for `Scheduler.wake`."""
        self.woken += sorted(job_ids)

    @property
    def commanded(self) -> list[str]:
        """The ids of the operations whose commands were published."""
        bodies = [json.loads(one.body) for one in self._published if one.exchange == HOSTS.name]
        return [command["operation_id"] for body in bodies for command in body["commands"]]

    async def told(self) -> list[str]:
        """Return the types of all events that were noted so far, once they are published."""
        published = asyncio.Event()

        async def note() -> None:
            published.set()

        self.event_log.then(note)
        running = asyncio.create_task(self.event_log.run())
        async with asyncio.timeout(10.0):
            await published.wait()
        running.cancel()
        await asyncio.wait([running])
        return [one.routing_key for one in self._published if one.exchange == EVENTS.name]

    def pass_time(self, seconds: float) -> None:
        """Let the database's clock go on, which else shows a moment later at each look."""
        self._seconds += seconds

    def _clock(self) -> float:
        self.pass_time(0.001)
        return self._seconds

    async def _replied(self, replies: Sequence[DirectReply], *, message_type: str) -> None:
        self.replies += [(one, json.loads(one.body)) for one in replies]
        await self._reply(replies, message_type=message_type)

    def _routed(self, letter: Letter) -> int:
        self._published.append(letter)
        return self._route(letter)


def new_operation(verb: Verb = Verb.INFER, job_id: str = JOB, **fields: object) -> NewOperation:
    """Return an operation that nobody has recorded, with an id of its own."""
    if verb is Verb.INFER:
        fields = {"input": {"n": 1}, **fields}
    request = JobRequest.model_validate({"job_id": job_id, "operation_type": verb, **fields})
    return NewOperation.of(f"0190c2f0-0000-7000-8000-{next(_numbers):012}", request, "http")


def _facts(one: OperationRecord) -> tuple[object, ...]:
    return one.operation_id, one.state, one.line, one.epoch, one.seq, one.host_id, one.generation
