"""The checker that every fault test ends with: I1 to I12 of docs/faults.md, from outside.

It looks at what there is, never at how Modelyard came to it: the test's own ledger, the collector,
the engines' lists, the broker's queues and the documents. What heals is waited for up to a
deadline; what can't be undone is judged at the end.
"""

import asyncio
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from deploy.local.rabbitmq import RabbitMQ
from dispatcher.service import QUEUES
from modelyard.contract.errors import ErrorCode
from modelyard.contract.ids import operation_id_for_key
from modelyard.contract.states import JobState, OperationState
from modelyard.contract.topology import HEARTBEATS_QUEUE, JOBS_QUEUE, queues_of_host
from tests.support.invariants.collector import Collector
from tests.support.invariants.histories import Fact, wrong_with
from tests.support.invariants.ledger import Ledger
from tests.support.invariants.outside import (
    Database,
    Document,
    Engines,
    Labelled,
    QueueState,
    connections,
    queues,
)
from tests.support.invariants.processes import Holding, grown
from tests.support.invariants.sampler import Sampler, holders, lacks_memory, over_capacity

HEAL_WITHIN_S = 60.0
LOST_HEAL_WITHIN_S = 120.0
"""For what a lost host had in hand: it is given up after 60 s, and begins anew elsewhere."""
INTERVAL_S = 0.25
UNREADABLE = frozenset(
    {ErrorCode.INVALID_JSON, ErrorCode.BODY_TOO_LARGE, ErrorCode.BATCH_TOO_LARGE}
)
"""Reasons of dead letters that hold nothing an operation could be made of."""
HEARTBEATS_ON_THE_WAY = 8
PATIENCE_S = 30.0
"""For which what heals is waited for at the least, however long ago the disturbance was."""
WORKER_CONSUMERS = 2
"""Of a worker: its commands, and its control messages."""
OF_THE_BROKERS_NAMING = "amq.gen-"
"""Begins the name of a queue that dies with its consumer: a gateway's, for events."""
SHOWN = 12
"""Violations of one invariant that are shown."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that does not hold."""

    invariant: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.sentence}"


@dataclass(slots=True)
class Snapshot:
    """All that is looked at, of about one moment."""

    operations: list[Document]
    jobs: list[Document]
    hosts: list[Document]
    letters: list[Document]
    containers: list[Labelled]
    others: dict[str, set[str]]
    """Ids of containers without our labels that run, by host."""


@dataclass
class Invariants:
    """One checker for one test; `sampler` runs beside the fault."""

    database: Database
    rabbitmq: RabbitMQ
    amqp_url: str
    engines: Engines
    ledger: Ledger
    collector: Collector
    sampler: Sampler
    holdings: Callable[[], Mapping[str, Holding]] = dict
    """Looks at the processes (I11)."""
    dispatchers: int = 1
    """How many run; the one that leads consumes the shared queues (I12)."""
    working: Callable[[], Iterable[str]] = tuple
    """Names the hosts whose worker runs; each has to be heard, and ONLINE (I12)."""
    bystanders: Mapping[str, str] = field(default_factory=dict)
    """Containers without our labels, by host (I10)."""
    held_before: Mapping[str, Holding] = field(default_factory=dict)
    """What the processes held before anything happened (I11)."""
    healed_s: float | None = None
    """Seconds that it took to heal, from the last disturbance or accepted request on."""
    _disturbed_at: float = field(default_factory=time.monotonic)

    def disturbed(self) -> None:
        """Note that a fault was made or repaired: from the last one on there is time to heal."""
        self._disturbed_at = time.monotonic()

    async def assert_holds(self, *, within_s: float = HEAL_WITHIN_S) -> None:
        """Wait for quiet, check everything; raises `AssertionError` with all that does not hold."""
        violations = await self.check(within_s=within_s)
        if violations:
            raise InvariantsBroken(violations)

    async def check(self, *, within_s: float = HEAL_WITHIN_S) -> list[Violation]:
        """Wait for what heals; return all violations, of that and else.

        It has `within_s` seconds from the last disturbance, or request that was accepted.
        """
        began = max(self._disturbed_at, self.ledger.accepted_at)
        until = max(began + within_s, time.monotonic() + PATIENCE_S)
        open_ones = await self._healing()
        # What is quiet when we look first has been so for a while.
        quiet_at = self.sampler.open_at
        while open_ones and time.monotonic() < until:
            await asyncio.sleep(INTERVAL_S)
            open_ones = await self._healing()
            quiet_at = time.monotonic()
        if not open_ones:
            self.healed_s = max(quiet_at - began, 0)
            open_ones = self._told("I1", too_slow(self.healed_s, within_s))
        return [*open_ones, *await self._lasting()]

    async def _healing(self) -> list[Violation]:
        """Return what is not in order yet; the broker, slow to ask, is asked last."""
        now = await self._look()
        found = [
            *self._told("I1", self._all_terminal(now)),
            *self._told("I3", one_container_each(now)),
            *self._told("I4", containers_as_recorded(now)),
            *self._told("I5", capacity(now)),
            *self._told("I10", self._bystanders(now)),
            *self._told("I12", unheard(now, self.working())),
        ]
        return found or await self._broker_quiet(now)

    async def _lasting(self) -> list[Violation]:
        now = await self._look()
        await self.sampler.sample()
        return [
            *self._told("I1", self._nobody_asked_for(now)),
            *self._told("I2", self._overlaps()),
            *self._told("I5", self.sampler.wrong["I5"]),
            *self._told("I6", [*self.sampler.wrong["I6"], *await self._histories(now)]),
            *self._told("I7", letters(now)),
            *self._told("I9", causes(now)),
            *self._told("I11", grown(self.held_before, self.holdings())),
        ]

    def _told(self, invariant: str, sentences: Iterable[str]) -> list[Violation]:
        every = list(sentences)
        told = [Violation(invariant, sentence) for sentence in every[:SHOWN]]
        if len(every) > SHOWN:
            told.append(Violation(invariant, f"and {len(every) - SHOWN} more"))
        return told

    async def _look(self) -> Snapshot:
        containers: list[Labelled] = []
        others: dict[str, set[str]] = {}
        for host_id, engine in self.engines.items():
            containers += await engine.labelled(host_id)
            others[host_id] = {
                one["Id"]
                for one in await engine.containers()
                if "modelyard.host" not in one["Labels"] and one["State"] == "running"
            }
        fields = ("_id", "state", "epoch", "seq", "error", "source", "retry_of", "job_id")
        return Snapshot(
            operations=await self.database.all("operations", None, *fields),
            jobs=await self.database.all("jobs"),
            hosts=await self.database.all("hosts"),
            letters=await self.database.all("dead_letters"),
            containers=containers,
            others=others,
        )

    def _all_terminal(self, now: Snapshot) -> Iterator[str]:
        for one in now.operations:
            if not OperationState(one["state"]).terminal:
                yield f"{one['_id']} of {one.get('job_id')} is still {one['state']}"
        there = {one["_id"] for one in now.operations}
        for missing in self.ledger.accepted - there:
            yield f"{missing} was accepted and is not there (yet)"

    def _nobody_asked_for(self, now: Snapshot) -> Iterator[str]:
        known = self.ledger.accepted | self.ledger.unknown
        for one in now.operations:
            ours = one.get("source") == "system" or one.get("retry_of")
            if one["_id"] not in known and not ours:
                yield f"{one['_id']} is there and nobody asked for it"

    def _overlaps(self) -> Iterator[str]:
        for first, second in self.collector.overlaps():
            yield (
                f"{first.tag} ran in {first.container} and in {second.container} together for "
                f"{min(first.until, second.until) - second.began:.2f} s"
            )

    async def _histories(self, now: Snapshot) -> list[str]:
        facts: dict[str, list[Fact]] = defaultdict(list)
        # A report that came too late is a note in the log and no fact.
        facts_alone = {"type": {"$regex": "^operation", "$ne": "operation.stale_report"}}
        for event in await self.database.all("events", facts_alone):
            state = OperationState(event["state"])
            facts[event["operation_id"]].append(Fact(event["epoch"], event["seq"], state))
        return [
            sentence
            for one in now.operations
            for sentence in wrong_with(one["_id"], facts[one["_id"]], OperationState(one["state"]))
        ]

    def _bystanders(self, now: Snapshot) -> Iterator[str]:
        for host_id, container_id in self.bystanders.items():
            if host_id in now.others and container_id not in now.others[host_id]:
                yield f"the container of somebody else on {host_id} is gone or was stopped"

    async def _broker_quiet(self, now: Snapshot) -> list[Violation]:
        listed = await queues(self.rabbitmq, self.amqp_url)
        busy = [
            f"{one.name} holds {one.messages} messages, {one.unacknowledged} of them unacked"
            for one in listed
            if one.messages > (HEARTBEATS_ON_THE_WAY if one.name == HEARTBEATS_QUEUE.name else 0)
        ]
        connected = await connections(self.rabbitmq, self.amqp_url)
        online = [one["_id"] for one in now.hosts if one.get("liveness") == "ONLINE"]
        return [
            *self._told("I8", busy),
            *self._told("I11", left_connections(connected, online, self.dispatchers)),
            *self._told("I12", self._deaf(listed, online)),
        ]

    def _deaf(self, listed: Iterable[QueueState], online: Sequence[str]) -> Iterator[str]:
        """Yield each consumer that should be there and is not (I12)."""
        consumers = {one.name: one.consumers for one in listed}
        wanted = {queue.name: min(self.dispatchers, 1) for queue in QUEUES}
        wanted |= {queue.name: 1 for host_id in online for queue in queues_of_host(host_id)}
        for name, count in wanted.items():
            if consumers.get(name, 0) < count:
                yield f"{name} should have {count} consumers and has {consumers.get(name, 0)}"
        own = [name for name in consumers if name.startswith(OF_THE_BROKERS_NAMING)]
        if not any(consumers[name] for name in own):
            yield "the gateway should hear of events by a queue of its own"


def too_slow(healed_s: float, within_s: float) -> Iterator[str]:
    """Yield that all is in order and came too late; patience tells slow from never."""
    if healed_s > within_s:
        yield f"it took {healed_s:.1f} s to heal, and {within_s:g} s are promised"


def unheard(now: Snapshot, working: Iterable[str]) -> Iterator[str]:
    """Yield each worker that runs and does not count as one that works (I12)."""
    liveness = {host["_id"]: host.get("liveness") for host in now.hosts}
    for host_id in working:
        if liveness.get(host_id) != "ONLINE":
            yield f"the worker of {host_id} runs, and its host is {liveness.get(host_id)}"


def left_connections(
    connected: Mapping[str, int], online: Iterable[str], dispatchers: int
) -> Iterator[str]:
    """Yield where processes have other connections to RabbitMQ than they need (I11)."""
    consuming = {
        "gateway": 1,
        "dispatcher": len(QUEUES) * min(dispatchers, 1),
        **{f"worker {host_id}": WORKER_CONSUMERS for host_id in online},
    }
    for process, count in consuming.items():
        publishing = dispatchers if process == "dispatcher" else 1
        # What declares or looks asks and goes; one of each consumer may be there at a time.
        for purpose, least, most in (
            ("consume", count, count),
            ("publish", 0, publishing),
            ("look", 0, count),
            ("declare", 0, count),
        ):
            has = connected.get(f"modelyard {process} {purpose}", 0)
            if not least <= has <= most:
                yield f"{process} has {has} connections to {purpose} and needs {most}"


class InvariantsBroken(AssertionError):  # noqa: N818 - an assertion, not an error of the program
    """Some invariants do not hold; `violations` has them all."""

    def __init__(self, violations: list[Violation]) -> None:
        super().__init__("\n".join(["", *map(str, violations)]))
        self.violations = violations


def one_container_each(now: Snapshot) -> Iterator[str]:
    """Yield what is wrong with the number of containers (I3)."""
    for name, count in Counter(one.name for one in now.containers).items():
        if count > 1:
            yield f"{count} containers of host, job and generation {name}"
    generations: dict[str, set[int]] = defaultdict(set)
    for one in now.containers:
        generations[one.job_id].add(one.generation)
    for job_id, several in generations.items():
        if len(several) > 1:
            yield f"job {job_id} has containers of the generations {sorted(several)}"


def containers_as_recorded(now: Snapshot) -> Iterator[str]:
    """Yield where engines and record differ (I4)."""
    expected = {
        (job["host_id"], job["_id"], job["generation"])
        for job in now.jobs
        if JobState(job["state"]).live
    }
    looked_at = set(now.others)
    recorded = {
        (job["host_id"], job["_id"], job["generation"]): job.get("container_id")
        for job in now.jobs
        if JobState(job["state"]).live
    }
    for one in now.containers:
        if one.name in recorded and recorded[one.name] != one.container_id:
            yield f"{one.name} is {recorded[one.name]} in the record and is {one.container_id}"
    found = {one.name for one in now.containers}
    for host_id, job_id, generation in sorted(found - expected):
        yield f"{host_id} has a container of job {job_id}, generation {generation}: an orphan"
    at_rest = {one.name for one in now.containers if one.state != "running"}
    loaded = {
        (job["host_id"], job["_id"], job["generation"])
        for job in now.jobs
        if job["state"] == JobState.LOADED
    }
    for host_id, job_id, generation in sorted(loaded & at_rest):
        yield f"job {job_id} is LOADED and its container on {host_id}, {generation}, does not run"
    for host_id, job_id, generation in sorted(expected - found):
        if host_id in looked_at:
            yield f"{host_id} lacks the container of job {job_id}, generation {generation}"


def capacity(now: Snapshot) -> Iterator[str]:
    """Yield where reservations and live jobs differ (I5)."""
    live: dict[str, set[tuple[str, int]]] = defaultdict(set)
    states = {job["_id"]: JobState(job["state"]) for job in now.jobs}
    for job in now.jobs:
        if JobState(job["state"]).live:
            live[job["host_id"]].add((job["_id"], job["generation"]))
    all_holders = holders(now.hosts)
    for job in now.jobs:
        if lacks_memory(job, all_holders):
            yield f"{job['host_id']} holds no memory for {job['_id']}, which is loaded"
    for host in now.hosts:
        yield from over_capacity(host)
        held = [(one["job_id"], one["generation"]) for one in host.get("reservations", ())]
        for pair, count in Counter(held).items():
            if count > 1:
                yield f"{host['_id']} holds {count} reservations for {pair}"
        yield from _residents(host, states)
        for pair in sorted(set(held) - live[host["_id"]]):
            yield f"{host['_id']} holds a reservation for {pair}, which is not live there"
        for pair in sorted(live[host["_id"]] - set(held)):
            yield f"{host['_id']} has no reservation for {pair}, which is live there"


def _residents(host: Document, states: Mapping[str, JobState]) -> Iterator[str]:
    """Yield where what is held for models in memory and the jobs that are loaded differ."""
    for one in host.get("reservations", ()):
        resident = one.get("resident")
        if not resident:
            continue
        if states.get(one["job_id"]) is not JobState.LOADED:
            yield f"{host['_id']} holds memory for {one['job_id']}, which is not loaded"
        elsewhere = set(resident["devices"]) ^ set(one.get("devices", ()))
        if elsewhere:
            yield (
                f"{host['_id']} holds memory for {one['job_id']} on other devices than are bound "
                f"to its container: {sorted(elsewhere)}"
            )


def letters(now: Snapshot) -> Iterator[str]:
    """Yield dead letters without a reason or an end of their operation (I7).

    What a letter between dispatchers and workers is about is in the record, and has its end by I1.
    """
    states = {one["_id"]: OperationState(one["state"]) for one in now.operations}
    for letter in now.letters:
        reason = letter.get("reason")
        if reason not in set(ErrorCode):
            yield f"dead letter {letter['_id']} has no known reason: {reason!r}"
        elif reason not in UNREADABLE and letter.get("queue") == JOBS_QUEUE.name:
            for operation_id in _operations_of(letter):
                if states.get(operation_id) not in (
                    OperationState.FAILED,
                    OperationState.REJECTED,
                ):
                    yield (
                        f"dead letter {letter['_id']} ({reason}) left {operation_id} "
                        f"{states.get(operation_id)}"
                    )


def _operations_of(letter: Document) -> list[str]:
    try:
        body = json.loads(letter["payload"])
    except ValueError:
        return []
    if isinstance(body, dict) and "requests" in body:
        named = [one.get("operation_id") for one in body["requests"] if isinstance(one, dict)]
        return [one for one in named if isinstance(one, str)]
    key = letter.get("headers", {}).get("Idempotency-Key") or letter["_id"]
    if isinstance(body, list):
        return [operation_id_for_key(f"{key}/{index}") for index in range(len(body))]
    return [operation_id_for_key(key)]


def causes(now: Snapshot) -> Iterator[str]:
    """Yield ends that do not say why (I9)."""
    for one in now.operations:
        state = OperationState(one["state"])
        if state.terminal and state is not OperationState.SUCCEEDED:
            error = one.get("error") or {}
            if error.get("code") not in set(ErrorCode) or not error.get("message"):
                yield f"{one['_id']} is {state} without a code and a cause: {error}"
    for job in now.jobs:
        if job["state"] == JobState.FAILED and not (job.get("error") or {}).get("code"):
            yield f"job {job['_id']} is FAILED without a code"
