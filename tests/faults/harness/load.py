"""A stream of work as clients make it: both doors, keys, retries until there is an answer."""

import asyncio
import json
import random
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import aio_pika
import httpx2
from aio_pika.exceptions import AMQPError

from modelyard.broker.connection_loss import losses
from modelyard.contract.errors import BrokerUnavailableError
from modelyard.contract.ids import operation_id_for_key
from tests.support.invariants.ledger import Ledger

ANSWER_WITHIN_S = 150.0
RETRY_S = 0.2
PATIENCE_S = 5.0
_AGAIN = (429, 500, 502, 503, 504)

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """One request and the key that makes it one operation, however often it is asked."""

    key: str
    body: Json

    @property
    def operation_id(self) -> str:
        """The id of its operation."""
        return operation_id_for_key(self.key)


class Doors:
    """Submits by HTTP and by AMQP and keeps the ledger."""

    def __init__(self, *, url: str, amqp_url: str, ledger: Ledger) -> None:
        # Kept connections would look like descriptors that the gateway leaks.
        limits = httpx2.Limits(max_keepalive_connections=4)
        self._http = httpx2.AsyncClient(
            base_url=url, timeout=PATIENCE_S, trust_env=False, limits=limits
        )
        self._amqp_url = amqp_url
        self._connection: aio_pika.abc.AbstractConnection | None = None
        self._exchange: aio_pika.abc.AbstractExchange | None = None
        self._connecting = asyncio.Lock()
        self.ledger = ledger
        self.retries = 0

    async def submit(self, request: Request, *, by_amqp: bool = False) -> str:
        """Submit until it is accepted; return the operation's id.

        Raises `AssertionError` for an answer that says no, and when there is none for too long.
        """
        self.ledger.wonder(request.key)
        deadline = time.monotonic() + ANSWER_WITHIN_S
        while not await (self.publish(request) if by_amqp else self.post(request)):
            assert time.monotonic() < deadline, f"nobody took {request.key}"
            self.retries += 1
            await asyncio.sleep(RETRY_S)
        self.ledger.accept(request.operation_id)
        return request.operation_id

    async def post(self, request: Request) -> bool:
        """Ask once by HTTP; False if the answer does not say."""
        try:
            answer = await self._http.post(
                "/v1/jobs", json=request.body, headers={"Idempotency-Key": request.key}
            )
        except httpx2.HTTPError:
            return False
        if answer.status_code in _AGAIN:
            return False
        assert answer.status_code == 202, f"{answer.status_code}: {answer.text}"
        assert answer.json()["operation_id"] == request.operation_id
        return True

    async def publish(self, request: Request) -> bool:
        """Publish once by AMQP; False if the broker has not confirmed it."""
        try:
            # It knows how the client library says that a connection died: by a cancellation, too.
            with losses():
                async with asyncio.timeout(PATIENCE_S):
                    exchange = await self._jobs()
                    await exchange.publish(_message(request), "job.submit", mandatory=True)
        except (AMQPError, OSError, RuntimeError, BrokerUnavailableError):
            await self._hang_up()
            return False
        return True

    async def close(self) -> None:
        """Close both doors."""
        await self._hang_up()
        await self._http.aclose()

    async def _jobs(self) -> aio_pika.abc.AbstractExchange:
        async with self._connecting:
            if self._exchange is None:
                self._connection = await aio_pika.connect(self._amqp_url, timeout=PATIENCE_S)
                channel = await self._connection.channel(on_return_raises=True)
                self._exchange = await channel.get_exchange("modelyard.jobs")
            return self._exchange

    async def _hang_up(self) -> None:
        connection, self._connection, self._exchange = self._connection, None, None
        if connection is not None:
            try:
                with losses():
                    async with asyncio.timeout(1):
                        await connection.close()
            except (AMQPError, OSError, RuntimeError, BrokerUnavailableError):
                return  # it is broken, which is why it is closed


def _message(request: Request) -> aio_pika.Message:
    return aio_pika.Message(
        json.dumps(request.body).encode(),
        content_type="application/json",
        headers={"Idempotency-Key": request.key},
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
    )


@dataclass(frozen=True, slots=True)
class Mix:
    """How much of what; a job is CREATE, LOAD, `infers` INFER, UNLOAD, TERMINATE."""

    jobs: int = 3
    infers: int = 4
    temps: int = 3
    batches: int = 2
    infer_s: float = 0.3
    batch_s: float = 1.0
    amqp: float = 0.5
    """The share that goes through RabbitMQ's door."""

    @property
    def operations(self) -> int:
        """How many operations it is."""
        return self.jobs * (self.infers + 4) + self.temps + self.batches


@dataclass
class Load:
    """Lines of requests: those of a line are submitted one after the other, lines at once."""

    doors: Doors
    mix: Mix
    choice: random.Random = field(default_factory=lambda: random.Random(0))
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    pause_s: float = 0.0
    """Between two requests of a line: spreads the load over time."""
    one_door: bool = False
    """Each line keeps to one door: what order is promised for while RabbitMQ goes away."""

    def batch_models(self) -> Iterator[tuple[str, Json]]:
        """Yield the models that batch programs need: each names its operation to the collector."""
        for number in range(self.mix.batches):
            key = self._batch_key(number)
            env = {
                "PROBE_MODE": "batch",
                "PROBE_TAG": operation_id_for_key(key),
                "PROBE_BATCH_SECONDS": str(self.mix.batch_s),
            }
            yield key, {"profile": "batch", "env": env}

    def lines(self) -> Iterator[Sequence[Request]]:
        """Yield the lines of requests."""
        for number in range(self.mix.jobs):
            yield list(self._life(f"{self.name}-job-{number}"))
        for number in range(self.mix.temps):
            key = f"{self.name}-temp-{number}"
            yield [self._with_input(key, key, "TEMP", model="load-http")]
        for number in range(self.mix.batches):
            key = self._batch_key(number)
            yield [Request(key, {"job_id": key, "operation_type": "TEMP", "model": key})]

    async def run(self) -> list[str]:
        """Submit everything; return the operations' ids once all of it is accepted."""
        async with asyncio.TaskGroup() as lines:
            tasks = [lines.create_task(self._submit(line)) for line in self.lines()]
        return [operation_id for task in tasks for operation_id in task.result()]

    async def _submit(self, line: Sequence[Request]) -> list[str]:
        ids = []
        by_amqp = self.choice.random() < self.mix.amqp
        for request in line:
            if not self.one_door:
                by_amqp = self.choice.random() < self.mix.amqp
            ids.append(await self.doors.submit(request, by_amqp=by_amqp))
            await asyncio.sleep(self.choice.uniform(0, 2 * self.pause_s))
        return ids

    def _life(self, job_id: str) -> Iterator[Request]:
        yield self._verb(job_id, "DEPLOY_CREATE", model="load-http")
        yield self._verb(job_id, "DEPLOY_LOAD")
        for number in range(self.mix.infers):
            yield self._with_input(f"{job_id}-infer-{number}", job_id, "INFER")
        yield self._verb(job_id, "DEPLOY_UNLOAD")
        yield self._verb(job_id, "TERMINATE")

    def _verb(self, job_id: str, verb: str, **more: str) -> Request:
        return Request(f"{job_id}-{verb}", {"job_id": job_id, "operation_type": verb, **more})

    def _with_input(self, key: str, job_id: str, verb: str, **more: str) -> Request:
        wish = {"sleep": self.mix.infer_s, "tag": operation_id_for_key(key)}
        body: Json = {"job_id": job_id, "operation_type": verb, "input": wish, **more}
        return Request(key, body)

    def _batch_key(self, number: int) -> str:
        return f"{self.name}-batch-{number}"
