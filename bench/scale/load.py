"""The load: submits operations over AMQP, and sees each one's end in the public events."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.contract.ids import new_operation_id
from modelyard.contract.message_types import SUBMISSION_TYPE
from modelyard.contract.messages import JobRequest, Submission, SubmittedRequest
from modelyard.contract.states import OperationState, Verb
from modelyard.contract.topology import EVENTS, JOBS, SUBMIT_KEY
from modelyard.process.tasks import together

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence

    from modelyard.broker import Broker, Subscription

INPUT = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1.0]}]}
ENDS = {f"operation.{state.lower()}": state for state in OperationState if state.terminal}
IN_FLIGHT = 1_000
"""Operations that `Load.keep_busy` keeps between their submission and their end."""
BATCH = 250
"""Operations in one of its messages."""
AT_ONCE = 64
"""Messages of `Load.keep_rate` that wait for RabbitMQ's confirm at the same time, at most."""


class NotEndedError(Exception):
    """Operations did not end in the time that they were given."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """Operations that ended in some seconds, and those that were submitted meanwhile."""

    operations: int
    seconds: float
    submitted: int
    """Operations that RabbitMQ has confirmed in these seconds."""

    @property
    def per_s(self) -> float:
        """Operations per second."""
        return self.operations / self.seconds


def infer(job_id: str) -> JobRequest:
    """Return a small inference on a job."""
    return JobRequest(job_id=job_id, operation_type=Verb.INFER, input=INPUT)


class Load:
    """Submits operations and waits for their ends.

    It publishes what a gateway publishes (`Submission`), in the place of a gateway whose database
    write is late: the dispatcher records the operations. An operation has ended when its event
    comes, which the dispatcher publishes after it has recorded the end.
    """

    def __init__(self, broker: Broker, events: Subscription) -> None:
        """`events` is a tap of the routing keys `ENDS`."""
        self._broker = broker
        self._events = events
        self._open: dict[str, float] = {}
        """When each was submitted, by `time.monotonic`."""
        self._changed = asyncio.Event()
        self.submitted = 0
        """Operations that RabbitMQ has confirmed."""
        self.ended = 0
        self.ends: Counter[OperationState] = Counter()

    async def follow(self) -> None:
        """Note the ends of operations until cancelled."""
        async for batch in self._events.batches(max_items=500):
            for delivery in batch:
                operation_id = json.loads(delivery.body)["operation_id"]
                if self._open.pop(operation_id, None) is not None:
                    self.ended += 1
                    self.ends[ENDS[delivery.routing_key]] += 1
            self._changed.set()
            await self._events.ack(batch)

    async def submit(self, requests: Sequence[JobRequest]) -> list[str]:
        """Submit operations in one message; return their ids."""
        submitted = tuple(
            SubmittedRequest(operation_id=new_operation_id(), request=one) for one in requests
        )
        ids = [one.operation_id for one in submitted]
        self._open.update(dict.fromkeys(ids, time.monotonic()))
        body = Submission(requests=submitted).model_dump_json(exclude_defaults=True).encode()
        await self._broker.publish(JOBS, SUBMIT_KEY, body, message_type=SUBMISSION_TYPE)
        self.submitted += len(ids)
        return ids

    def forget(self, operation_ids: Sequence[str]) -> None:
        """Wait no more for these operations, which are to stay where they are."""
        for one in operation_ids:
            self._open.pop(one, None)

    async def drained(self, within_s: float) -> None:
        """Wait until all operations have ended; raises `NotEndedError` after `within_s` seconds."""
        await self._until_open_are_at_most(0, time.monotonic() + within_s)

    async def run_all(self, requests: Sequence[JobRequest], within_s: float) -> None:
        """Submit many operations and wait until all have ended; raises `NotEndedError`."""
        ends_at = time.monotonic() + within_s
        for chunk in _chunks(requests, BATCH):
            await self._until_open_are_at_most(IN_FLIGHT - len(chunk), ends_at)
            await self.submit(chunk)
        await self._until_open_are_at_most(0, ends_at)

    async def one_at_a_time(self, jobs: Sequence[str], count: int, within_s: float) -> list[float]:
        """Run `count` inferences, each after the end of the one before; return their seconds.

        Stops after `within_s` seconds; raises `NotEndedError` if not even one ended by then.
        """
        ends_at = time.monotonic() + within_s
        took: list[float] = []
        for job_id in itertools.islice(itertools.cycle(jobs), count):
            began = time.monotonic()
            await self.submit([infer(job_id)])
            try:
                await self._until_open_are_at_most(0, ends_at)
            except NotEndedError:
                if not took:
                    raise
                break
            took.append(time.monotonic() - began)
        return took

    @asynccontextmanager
    async def keep_busy(self, jobs: Sequence[str]) -> AsyncIterator[None]:
        """Keep `IN_FLIGHT` inferences in flight on these jobs inside of the block."""
        async with _running(self._feed(jobs)):
            yield

    @asynccontextmanager
    async def keep_rate(self, jobs: Sequence[str], per_s: float) -> AsyncIterator[None]:
        """Submit so many inferences a second on these jobs inside of the block.

        Each is a message of its own, and comes the same time after the one before, whether that is
        confirmed or not; what is late is sent at once. At the end all that were sent are confirmed;
        an error of the load is raised then.
        """
        turns = enumerate(itertools.cycle(jobs))
        began, over = time.monotonic(), asyncio.Event()

        async def send() -> None:
            for number, job_id in turns:
                await asyncio.sleep(max(0.0, began + number / per_s - time.monotonic()))
                if over.is_set():
                    return
                await self.submit([infer(job_id)])

        async with _running(together(*(send() for _ in range(AT_ONCE))), stop=over.set):
            yield

    async def measured(self, seconds: float) -> Throughput:
        """Count the operations that end, and that are submitted, in the next seconds."""
        ended, submitted, began = self.ended, self.submitted, time.monotonic()
        await asyncio.sleep(seconds)
        took = time.monotonic() - began
        return Throughput(self.ended - ended, took, self.submitted - submitted)

    async def _feed(self, jobs: Sequence[str]) -> None:
        endless = itertools.cycle(jobs)
        while True:
            await self._until_open_are_at_most(IN_FLIGHT - BATCH, float("inf"))
            await self.submit([infer(job_id) for job_id in itertools.islice(endless, BATCH)])

    async def _until_open_are_at_most(self, count: int, ends_at: float) -> None:
        while len(self._open) > count:
            self._changed.clear()
            try:
                async with asyncio.timeout(max(0.0, min(ends_at - time.monotonic(), 3_600.0))):
                    await self._changed.wait()
            except TimeoutError:
                message = f"{len(self._open)} operations have not ended in time."
                raise NotEndedError(message) from None


@asynccontextmanager
async def _running(
    feeding: Coroutine[Any, Any, object], stop: Callable[[], object] | None = None
) -> AsyncIterator[None]:
    """Run this inside of the block; its error is raised at the end.

    `stop` has it end; without that it is cancelled.
    """
    task = asyncio.create_task(feeding)
    try:
        yield
    finally:
        (stop or task.cancel)()
        await asyncio.wait((task,))
        if not task.cancelled() and (error := task.exception()):
            raise error


def _chunks(requests: Sequence[JobRequest], size: int) -> Iterator[Sequence[JobRequest]]:
    for start in range(0, len(requests), size):
        yield requests[start : start + size]


@asynccontextmanager
async def opened_load(broker: Broker) -> AsyncIterator[Load]:
    """Open a load that follows the events inside of the block."""
    async with broker.tap(EVENTS, sorted(ENDS)) as events:
        load = Load(broker, events)
        following = asyncio.create_task(load.follow())
        try:
            yield load
        finally:
            following.cancel()
