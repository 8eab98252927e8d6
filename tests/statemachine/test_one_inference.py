"""What one inference on a loaded job costs, from HTTP request to answer: counted, not timed.

The real gateway, dispatcher and worker run over broker, store and engine in memory, on a virtual
clock. Nothing takes time there but what is counted, so the time that passes is the count.
"""

import asyncio
import gc
from collections import Counter
from collections.abc import Iterator, Mapping

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

HOST, JOB, MODEL = "h1", "j1", "http"
READ_S = 0.000_1
DURABLE_S = 0.001
"""What a call takes. A read beside a write is not in series with it: it is answered earlier."""
TRIES = 4
"""Inferences that are counted. The least is the count: periodic work may fall upon some of them."""
BETWEEN_S, AFTER_S = 0.7, 0.1
"""Seconds between two of them, and until all that comes after an answer is done."""
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

    def infer(self) -> tuple[float, Counter[Call]]:
        """Have an inference done; return the seconds until its answer, and all calls for it."""
        self._loop.advance(BETWEEN_S)
        before, began = self._calls, self._loop.time()
        self._ask(Verb.INFER, input={"operation": "one"})
        took_s = self._loop.time() - began
        self._loop.advance(AFTER_S)
        return took_s, self._calls - before

    def take_time(self, costs_s: Mapping[Call, float]) -> None:
        """Have each call of these kinds take so many seconds."""
        for link in self._links:
            link.costs_s = dict(costs_s)

    @property
    def _calls(self) -> Counter[Call]:
        return sum((link.calls for link in self._links), Counter[Call]())

    def answers(self) -> tuple[dict[str, object], dict[str, object]]:
        """Return the answer to a request that waits, and what is read of its operation then."""
        waited = self._ask(Verb.INFER, input={"operation": "one"})
        self._loop.advance(AFTER_S)
        read = self._loop.run(self._client.get(f"/v1/operations/{waited['operation_id']}"))
        return waited, read.json()

    def _ask(self, verb: Verb, **more: object) -> dict[str, object]:
        request = {"job_id": JOB, "operation_type": verb, **more}
        posting = self._client.post("/v1/jobs", json=request, headers={"Prefer": "wait=60"})
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


def test_it_waits_for_few_durable_writes_and_for_no_reads_one_after_another(fleet: Fleet) -> None:
    fleet.take_time(
        {Call.READ: READ_S, Call.WRITE: DURABLE_S, Call.DURABLE_MESSAGE: DURABLE_S},
    )
    took_s = min(fleet.infer()[0] for _ in range(TRIES))
    durable, reads = divmod(round(took_s / READ_S), round(DURABLE_S / READ_S))
    assert durable <= DURABLE_WAITS_IN_SERIES
    assert reads <= READS_IN_SERIES


def test_all_processes_together_make_few_calls_for_it(fleet: Fleet) -> None:
    counts = [fleet.infer()[1] for _ in range(TRIES)]
    least = {call: min(count[call] for count in counts) for call in Call}
    assert {call: least[call] for call in MOST_CALLS if least[call] > MOST_CALLS[call]} == {}


def test_what_a_waiting_request_is_told_is_what_the_record_says(fleet: Fleet) -> None:
    waited, read = fleet.answers()
    assert waited == read
