"""What one inference on a loaded model costs, from HTTP request to answer: counted, not timed.

Asked of its job, and of the model, so that the gateway chooses the job: once it has read which jobs
there are, that costs nothing more. And what a container costs that is created and removed.

The real gateway, dispatcher and worker run over broker, store and engine in memory, on a virtual
clock. Nothing takes time there but what is counted, so the time that passes is the count of what
waits for each other. What is periodic is told apart by a second fleet, which is alike at each
moment, but is asked for nothing.
"""

import asyncio
import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import httpx2
import pytest

from dispatcher.settings import DispatcherSettings
from gateway.app import create_app
from modelyard.contract.states import Verb
from modelyard.store.connection import ASK_TIME_EVERY_S
from modelyard.store.hosts import Hosts
from modelyard.store.records import HostRecord
from tests.fakes.broker_links import Call
from tests.statemachine.loop import VirtualLoop
from tests.statemachine.virtual import virtual_machine
from tests.statemachine.world import Jitter, World

DURABLE_WAITS_IN_SERIES = 5
"""Writes and persistent messages that wait for each other: the submission, the write that takes it
in, the command, the last report, the write that records it."""
READS_IN_SERIES = 0
"""Reads of the database that wait for each other or for a write."""
OF_AN_INFERENCE = {Call.WRITE: 4, Call.DURABLE_MESSAGE: 3, Call.PASSING_MESSAGE: 2}
"""Commands to the database, and messages, of all processes together."""
OF_A_CONTAINER = {
    Call.WRITE: 17,
    Call.READ: 7,
    Call.DURABLE_MESSAGE: 6,
    Call.PASSING_MESSAGE: 8,
    Call.ENGINE: 7,
}
"""The same, and calls to the engine, of a container that is created and removed, never started.

DEPLOY_CREATE reads the new job and its line, the generations of deleted jobs, the catalog, and what
else waits for a host. TERMINATE looks for who waits for what it has freed; the host that got it
back is read when it is next needed. What comes of the engine's events is left out: the worker takes
one inventory a second at most, however many containers change.
"""

HOST, JOB, MODEL, NEVER_STARTED = "h1", "j1", "open", "process"
INPUT = {"operation": "one"}
READ_S = 0.000_1
DURABLE_S = 0.001
"""What a call takes. A read beside a write is not in series with it: it is answered earlier."""
COSTS_S = {Call.READ: READ_S, Call.WRITE: DURABLE_S, Call.DURABLE_MESSAGE: DURABLE_S}
SOON_S, RESTED_S = 0.7, ASK_TIME_EVERY_S + 2.0
"""Seconds before each one that is counted. After the longer time whatever a process keeps for some
seconds is outdated."""
READS_TO_CHOOSE = {SOON_S: 1, RESTED_S: 2}
"""Reads more, in series too: of the model's jobs, and of the catalog if it was not read lately."""
READS_OF_THE_CATALOG = {SOON_S: 0, RESTED_S: 1}
"""By the gateway, of the name of a new job's model."""
TRIES = 5
"""How often each thing is counted. Every single one counts."""
AFTER_S = 0.1
"""Seconds until all that comes after an answer is done."""
SWEEP_S: float = DispatcherSettings.model_fields["dispatcher_sweep_interval_s"].default
SWEEPS = 5
NO_JITTER = Jitter(1.0, 0.0)

Calls = Counter[Call]


class Fleet:
    """A gateway, a dispatcher, and a worker that has one job with its model loaded."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        world = World(loop, 0, NO_JITTER)
        world.manners[MODEL].takes_s = 0.0
        world.engines[HOST].tells_changes = False
        door, gateway = world.start_gateway()
        worker = world.start_worker(HOST)
        members = [door, world.start_dispatcher(), worker]
        self._engine = worker.engine
        self._links = [link for member in members for link in member.links]
        transport = httpx2.ASGITransport(app=create_app(gateway))
        self._client = httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1")
        loop.advance(1.0)
        self.create_and_remove("c0")
        self.ask(Verb.DEPLOY_CREATE, model=MODEL)
        self.ask(Verb.DEPLOY_LOAD)
        self.ask_model()

    def ask(self, verb: Verb, job_id: str = JOB, **more: object) -> dict[str, object]:
        """Have something done to a job; return the answer once it is."""
        return self._post("/v1/jobs", {"job_id": job_id, "operation_type": verb, **more})

    def ask_model(self) -> None:
        """Have an inference done by any job of the model."""
        self._post(f"/v1/models/{MODEL}/infer", {"input": INPUT})

    def infer(self) -> dict[str, object]:
        """Have an inference done by the job; return the answer."""
        return self.ask(Verb.INFER, input=INPUT)

    def create_and_remove(self, job_id: str) -> None:
        """Have a container created and removed."""
        self.ask(Verb.DEPLOY_CREATE, job_id, model=NEVER_STARTED)
        self.ask(Verb.TERMINATE, job_id)

    def seconds(self, work: Callable[[], object]) -> float:
        """Return how long something takes."""
        began = self._loop.time()
        work()
        return self._loop.time() - began

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self._loop.advance(seconds)

    def take_time(self, costs_s: Mapping[Call, float]) -> None:
        """Have each call of these kinds take so many seconds."""
        for link in self._links:
            link.costs_s = dict(costs_s)

    @property
    def calls(self) -> Calls:
        """All calls that were ever made."""
        assert self._engine is not None
        return sum((link.calls for link in self._links), Calls({Call.ENGINE: self._engine.calls}))

    def read(self, operation_id: object) -> dict[str, object]:
        """Return what the gateway says of an operation."""
        read = self._loop.run(self._client.get(f"/v1/operations/{operation_id}"))
        body: dict[str, object] = read.json()
        return body

    def _post(self, path: str, request: Mapping[str, object]) -> dict[str, object]:
        posting = self._client.post(path, json=request, headers={"Prefer": "wait=60"})
        answer = self._loop.run(posting)
        assert (answer.status_code, answer.json()["state"]) == (200, "SUCCEEDED"), answer.text
        body: dict[str, object] = answer.json()
        return body


@contextmanager
def running_fleet() -> Iterator[Fleet]:
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    gc.disable()  # what it finalizes, and when, would differ from run to run
    with virtual_machine(loop, lambda _: None):
        try:
            yield Fleet(loop)
        finally:
            loop.finish()
            gc.enable()
            asyncio.set_event_loop(None)


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with running_fleet() as made:
        yield made


def in_series(took_s: float) -> tuple[int, int]:
    """Return how many durable waits and how many reads an inference waited for."""
    return divmod(round(took_s / READ_S), round(DURABLE_S / READ_S))


def calls_for(work: Callable[[Fleet, int], object], *, pause_s: float) -> Calls:
    """Return all calls for what is done `TRIES` times, with such pauses."""

    def calls_of_a_fleet(do: Callable[[Fleet, int], object]) -> Calls:
        with running_fleet() as fleet:
            before = fleet.calls
            for number in range(1, TRIES + 1):
                fleet.wait(pause_s)
                do(fleet, number)
            fleet.wait(RESTED_S)
            return fleet.calls - before

    return calls_of_a_fleet(work) - calls_of_a_fleet(lambda _fleet, _number: None)


def each_time(calls: Mapping[Call, int]) -> Calls:
    """Return calls as often as `calls_for` does something."""
    return Calls({call: count * TRIES for call, count in calls.items()})


pauses = pytest.mark.parametrize("pause_s", [SOON_S, RESTED_S])


@pauses
def test_it_waits_for_few_durable_writes_and_for_no_reads_one_after_another(
    fleet: Fleet, pause_s: float
) -> None:
    fleet.take_time(COSTS_S)
    for _ in range(TRIES):
        fleet.wait(pause_s)
        assert in_series(fleet.seconds(fleet.infer)) == (DURABLE_WAITS_IN_SERIES, READS_IN_SERIES)


@pauses
def test_asked_of_the_model_it_waits_for_few_reads_more_and_soon_after_for_none(
    fleet: Fleet, pause_s: float
) -> None:
    fleet.take_time(COSTS_S)
    first = (DURABLE_WAITS_IN_SERIES, READS_IN_SERIES + READS_TO_CHOOSE[pause_s])
    for _ in range(TRIES):
        fleet.wait(pause_s)
        assert in_series(fleet.seconds(fleet.ask_model)) == first
        again = in_series(fleet.seconds(fleet.ask_model))
        assert again == (DURABLE_WAITS_IN_SERIES, READS_IN_SERIES)


@pauses
def test_all_processes_together_make_few_calls_for_it(pause_s: float) -> None:
    calls = calls_for(lambda fleet, _: fleet.infer(), pause_s=pause_s)
    del calls[Call.ENGINE]  # the worker measures a model's memory now and then while it is used
    assert calls == each_time(OF_AN_INFERENCE)


@pauses
def test_asked_of_the_model_they_make_few_reads_more_and_soon_after_none(pause_s: float) -> None:
    def twice(fleet: Fleet, _: int) -> None:
        fleet.ask_model()
        fleet.ask_model()

    calls = calls_for(twice, pause_s=pause_s)
    del calls[Call.ENGINE]
    both = {call: 2 * count for call, count in OF_AN_INFERENCE.items()}
    assert calls == each_time(both | {Call.READ: READS_TO_CHOOSE[pause_s]})


def test_what_a_waiting_request_is_told_is_what_the_record_says(fleet: Fleet) -> None:
    waited = fleet.infer()
    fleet.wait(AFTER_S)
    assert waited == fleet.read(waited["operation_id"])


@pauses
def test_a_container_is_created_and_removed_with_few_calls(pause_s: float) -> None:
    calls = calls_for(lambda fleet, n: fleet.create_and_remove(f"c{n}"), pause_s=pause_s)
    calls[Call.READ] -= TRIES * READS_OF_THE_CATALOG[pause_s]
    assert calls == each_time(OF_A_CONTAINER)


def test_a_round_of_the_sweep_reads_all_that_is_known_of_all_hosts_once(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_all, whole_fleets = Hosts.all, []

    async def noted(
        hosts: Hosts, host_ids: Sequence[str] | None = None, *, most: int = 0
    ) -> list[HostRecord]:
        if host_ids is None:
            whole_fleets.append(most)
        return await read_all(hosts, host_ids, most=most)

    monkeypatch.setattr(Hosts, "all", noted)
    fleet.wait(SWEEPS * SWEEP_S)
    # For its memory of them. Each repair by itself would take 30 ms for 2,000 hosts.
    assert len(whole_fleets) <= SWEEPS
