"""What one inference on a loaded model costs, from HTTP request to answer: counted, not timed.

Asked of its job, and of the model, so that the gateway chooses the job: once it has read which jobs
there are, that costs nothing more.

The real gateway, dispatcher and worker run over broker, store and engine in memory, on a virtual
clock. Nothing takes time there but what is counted, so the time that passes is the count.
"""

import asyncio
import gc
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import httpx2
import pytest

from gateway.app import create_app
from modelyard.contract.states import Verb
from tests.fakes.broker_links import Call
from tests.statemachine.loop import VirtualLoop
from tests.statemachine.virtual import virtual_machine
from tests.statemachine.world import Jitter, World

DURABLE_WAITS_IN_SERIES = 5
"""Most writes and persistent messages that wait for each other: the submission, the write that
takes it in, the command, the last report, the write that records it."""
READS_IN_SERIES = 0
"""Most reads of the database that wait for each other or for a write."""
MOST_CALLS = {Call.WRITE: 4, Call.READ: 0, Call.DURABLE_MESSAGE: 3, Call.PASSING_MESSAGE: 2}
"""Most commands to the database, and most messages, of all processes together."""

MOST_WRITES_AND_READS = {
    Verb.DEPLOY_CREATE: (9, 5),
    Verb.TERMINATE: (8, 1),
}
"""Of a job's container that is created and removed: most writes, and most reads, of all processes.

CREATE reads the new job and its line, the generations of deleted jobs, the catalog, and what else
waits for a host. TERMINATE looks for who waits for what it has freed. The worker's inventory, which
its end may cause, comes later.
"""

READS_TO_CHOOSE = 1
"""Most reads in series more, if the gateway has not read lately which jobs the model has."""

HOST, JOB, MODEL = "h1", "j1", "http"
INPUT = {"input": {"operation": "one"}}
READ_S = 0.000_1
DURABLE_S = 0.001
"""What a call takes. A read beside a write is not in series with it: it is answered earlier."""
COSTS_S = {Call.READ: READ_S, Call.WRITE: DURABLE_S, Call.DURABLE_MESSAGE: DURABLE_S}
TRIES = 4
"""Inferences that are counted. The least is the count: periodic work may fall upon some of them."""
BETWEEN_S, AFTER_S = 0.7, 0.1
"""Seconds between two of them, and until all that comes after an answer is done."""
EVENTS_S = 0.03
"""Seconds until an operation's last events are in the log."""
NO_JITTER = Jitter(1.0, 0.0)


class Fleet:
    """A gateway, a dispatcher, and a worker that has one job with its model loaded."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        world = World(loop, 0, NO_JITTER)
        world.manners[MODEL].takes_s = 0.0
        door, gateway = world.start_gateway()
        members = [door, world.start_dispatcher(), world.start_worker(HOST)]
        self._links = [link for member in members for link in member.links]
        transport = httpx2.ASGITransport(app=create_app(gateway))
        self._client = httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1")
        loop.advance(1.0)
        self._ask(Verb.DEPLOY_CREATE, model=MODEL)
        self._ask(Verb.DEPLOY_LOAD)
        self.infer()

    def infer(self, of: str = JOB) -> tuple[float, Counter[Call]]:
        """Have an inference done; return the seconds until its answer, and all calls for it.

        It is asked of the job or of the model.
        """
        self._loop.advance(BETWEEN_S)
        return self.infer_again(of)

    def infer_again(self, of: str = JOB) -> tuple[float, Counter[Call]]:
        """Do as `infer`, soon after the one before."""
        before, began = self._calls, self._loop.time()
        if of == JOB:
            self._ask(Verb.INFER, **INPUT)
        else:
            self._post(f"/v1/models/{of}/infer", INPUT)
        took_s = self._loop.time() - began
        self._loop.advance(AFTER_S)
        return took_s, self._calls - before

    def take_time(self, costs_s: Mapping[Call, float]) -> None:
        """Have each call of these kinds take so many seconds."""
        for link in self._links:
            link.costs_s = dict(costs_s)

    def create_and_terminate(self, job_id: str) -> dict[Verb, Counter[Call]]:
        """Have a container created and removed; return all calls for each of the two."""
        return {
            Verb.DEPLOY_CREATE: self._calls_for(job_id, Verb.DEPLOY_CREATE, model=MODEL),
            Verb.TERMINATE: self._calls_for(job_id, Verb.TERMINATE),
        }

    def _calls_for(self, job_id: str, verb: Verb, **more: object) -> Counter[Call]:
        self._loop.advance(BETWEEN_S)
        before = self._calls
        self._post("/v1/jobs", {"job_id": job_id, "operation_type": verb, **more})
        self._loop.advance(EVENTS_S)
        return self._calls - before

    @property
    def _calls(self) -> Counter[Call]:
        return sum((link.calls for link in self._links), Counter[Call]())

    def answers(self) -> tuple[dict[str, object], dict[str, object]]:
        """Return the answer to a request that waits, and what is read of its operation then."""
        waited = self._ask(Verb.INFER, **INPUT)
        self._loop.advance(AFTER_S)
        read = self._loop.run(self._client.get(f"/v1/operations/{waited['operation_id']}"))
        return waited, read.json()

    def _ask(self, verb: Verb, **more: object) -> dict[str, object]:
        return self._post("/v1/jobs", {"job_id": JOB, "operation_type": verb, **more})

    def _post(self, path: str, request: Mapping[str, object]) -> dict[str, object]:
        posting = self._client.post(path, json=request, headers={"Prefer": "wait=60"})
        answer = self._loop.run(posting)
        assert (answer.status_code, answer.json()["state"]) == (200, "SUCCEEDED"), answer.text
        body: dict[str, object] = answer.json()
        return body


@pytest.fixture
def fleet() -> Iterator[Fleet]:
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


def in_series(took_s: float) -> tuple[int, int]:
    """Return how many durable waits and how many reads an inference waited for."""
    return divmod(round(took_s / READ_S), round(DURABLE_S / READ_S))


def test_it_waits_for_few_durable_writes_and_for_no_reads_one_after_another(fleet: Fleet) -> None:
    fleet.take_time(COSTS_S)
    durable, reads = in_series(min(fleet.infer()[0] for _ in range(TRIES)))
    assert durable <= DURABLE_WAITS_IN_SERIES
    assert reads <= READS_IN_SERIES


def test_asked_of_the_model_it_waits_for_one_read_more_and_soon_after_for_none(
    fleet: Fleet,
) -> None:
    fleet.take_time(COSTS_S)
    pairs = [(fleet.infer(MODEL)[0], fleet.infer_again(MODEL)[0]) for _ in range(TRIES)]
    durable, reads = in_series(min(first for first, _ in pairs))
    assert durable <= DURABLE_WAITS_IN_SERIES
    assert reads <= READS_IN_SERIES + READS_TO_CHOOSE
    durable, reads = in_series(min(again for _, again in pairs))
    assert durable <= DURABLE_WAITS_IN_SERIES
    assert reads <= READS_IN_SERIES


def test_all_processes_together_make_few_calls_for_it(fleet: Fleet) -> None:
    assert too_many([fleet.infer()[1] for _ in range(TRIES)], MOST_CALLS) == {}


def test_asked_of_the_model_they_make_one_read_more_and_soon_after_none(fleet: Fleet) -> None:
    pairs = [(fleet.infer(MODEL)[1], fleet.infer_again(MODEL)[1]) for _ in range(TRIES)]
    with_reading = MOST_CALLS | {Call.READ: MOST_CALLS[Call.READ] + READS_TO_CHOOSE}
    assert too_many([first for first, _ in pairs], with_reading) == {}
    assert too_many([again for _, again in pairs], MOST_CALLS) == {}


def too_many(counts: Sequence[Counter[Call]], most: Mapping[Call, int]) -> dict[Call, int]:
    """Return the calls of which even the fewest are more than there may be."""
    least = {call: min(count[call] for count in counts) for call in most}
    return {call: count for call, count in least.items() if count > most[call]}


def test_what_a_waiting_request_is_told_is_what_the_record_says(fleet: Fleet) -> None:
    waited, read = fleet.answers()
    assert waited == read


def test_a_container_is_created_and_removed_with_few_writes_and_reads(fleet: Fleet) -> None:
    pairs = [fleet.create_and_terminate(f"j{n}") for n in range(2, 2 + TRIES)]
    for verb, (writes, reads) in MOST_WRITES_AND_READS.items():
        counts = [pair[verb] for pair in pairs]
        assert too_many(counts, {Call.WRITE: writes, Call.READ: reads}) == {}, verb
