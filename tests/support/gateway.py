"""A gateway that serves on a real port in the process of the test, and the stores behind it.

The dispatcher is played by hand: `ServedGateway.finish` records an end and publishes its event.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx2
from prometheus_client import CollectorRegistry

from deploy.local.mongodb import MongoDB
from deploy.local.rabbitmq import RabbitMQ
from gateway.app import create_app
from gateway.http.connections import ConnectionLimits
from gateway.http.server import GatewayServer, listen
from gateway.middleware.cross_site import WebRules
from gateway.monitoring.access_log import refused
from gateway.monitoring.metrics import GatewayMetrics
from gateway.service import Gateway, GatewayLimits
from gateway.waiters import MAX_WAITING
from modelyard.broker import Broker, Delivery
from modelyard.contract.access.api_keys import ApiKey
from modelyard.contract.access.scopes import Scope
from modelyard.contract.catalog.entries import DatasetSpec, ModelSpec, Profile
from modelyard.contract.content.results import ResultContent
from modelyard.contract.errors import ErrorInfo
from modelyard.contract.ids import DEFAULT_TENANT
from modelyard.contract.messages import EngineFacts, Event, HostOnline, OperationReport, Submission
from modelyard.contract.states import OperationState
from modelyard.contract.topology import DEAD_QUEUE, EVENTS, JOBS_QUEUE
from modelyard.store import Store
from modelyard.store.api_keys import NewApiKeyRecord
from modelyard.store.operation_writes import DispatchClaim
from tests.support.waiting import eventually

Json = dict[str, Any]


@dataclass(frozen=True)
class ServedGateway:
    """A gateway that serves, a client at its door, and the stores behind it."""

    url: str
    client: httpx2.AsyncClient
    gateway: Gateway
    server: GatewayServer
    store: Store
    broker: Broker
    registry: CollectorRegistry
    """Where the gateway counts."""

    async def submit(self, request: Json, **headers: str) -> httpx2.Response:
        """Post one request."""
        return await self.client.post("/v1/jobs", json=request, headers=headers)

    async def accepted(self, **request: Any) -> str:
        """Submit a TERMINATE, or what is given, and return its operation id.

        A machine that stands still for a second makes 503s; what clients do then is done here.
        """
        job = {"job_id": f"j-{uuid.uuid4().hex[:8]}", "operation_type": "TERMINATE"}
        key = {"Idempotency-Key": uuid.uuid4().hex}
        answer = await self.submit(job | request, **key)
        for _ in range(5):
            if answer.status_code != 503:
                break
            await asyncio.sleep(float(answer.headers["Retry-After"]))
            answer = await self.submit(job | request, **key)
        assert answer.status_code == 202, answer.text
        operation_id: str = answer.json()["operation_id"]
        return operation_id

    async def finish(
        self,
        operation_id: str,
        state: OperationState = OperationState.SUCCEEDED,
        *,
        result_json: str | ResultContent | None = None,
        error: ErrorInfo | None = None,
        publish: bool = True,
    ) -> None:
        """Take an operation to its end as the dispatcher does: record it, then say so."""
        operations = self.store.operations
        record = await eventually(lambda: self.store.operation_queries.get(operation_id))
        assert record.job_id is not None
        claim = DispatchClaim(record, "h-1", "incarnation", 1)
        assert await operations.claim([claim], token=uuid.uuid4().hex)
        report = OperationReport(
            operation_id=operation_id,
            epoch=1,
            seq=1,
            job_id=record.job_id,
            generation=1,
            state=state,
            error=error,
        )
        results = {}
        if result_json is not None:
            results[operation_id] = await self.store.results.put(operation_id, 1, result_json)
        assert await operations.apply([report], results) == 1
        if publish:
            await self.publish_end(operation_id, state)

    async def publish_end(self, operation_id: str, state: OperationState) -> None:
        """Publish that an operation has ended."""
        event = Event(
            event_id=uuid.uuid4().hex,
            type=f"operation.{state.lower()}",
            at=datetime.now(UTC),
            operation_id=operation_id,
            state=state,
        )
        body = event.model_dump_json().encode()
        await self.broker.publish(EVENTS, event.type, body, mandatory=False, persistent=False)

    async def has_waiters(self, count: int = 1) -> None:
        """Return once so many requests wait for an end."""

        async def enough() -> bool:
            return self.gateway.waiters.waiting >= count

        await eventually(enough, what=f"{count} waiting requests")

    async def messages(self, count: int) -> list[Delivery]:
        """Take so many messages, of any kind, off the queue of the dispatcher."""
        return await messages(self.broker, count)

    async def published(self, count: int) -> list[Submission]:
        """Take so many submissions off the queue of the dispatcher."""
        taken: list[Submission] = []
        async with asyncio.timeout(10), self.broker.subscribe(JOBS_QUEUE, prefetch=50) as source:
            async for batch in source.batches(max_items=50):
                taken += [Submission.model_validate_json(one.body) for one in batch]
                await source.ack(batch)
                if sum(len(one.requests) for one in taken) >= count:
                    return taken
        raise AssertionError


@asynccontextmanager
async def serving(
    mongo_url: str,
    amqp_url: str,
    *,
    with_keys: bool = False,
    rules: WebRules | None = None,
    limits: ConnectionLimits | None = None,
    max_waiting: int = MAX_WAITING,
    port: int = 0,
) -> AsyncIterator[ServedGateway]:
    """Serve a gateway between a real RabbitMQ and a real MongoDB that it has all to itself."""
    store = Store(mongo_url, name="gateway", timeout_s=2.0)
    hands = Store(mongo_url, name="test", timeout_s=10.0)
    broker, other = Broker(amqp_url, name="gateway"), Broker(amqp_url, name="test")
    await hands.prepare()
    await other.declare([JOBS_QUEUE, DEAD_QUEUE])
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)
    gateway = Gateway(
        store,
        broker,
        with_keys=with_keys,
        limits=GatewayLimits(waiting=max_waiting),
        metrics=metrics,
    )
    server = GatewayServer(
        create_app(gateway, rules),
        on_stop=gateway.waiters.close,
        limits=limits,
        on_refused=partial(refused, metrics, with_line=True),
    )
    listener = listen("127.0.0.1", port)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(gateway.run())
            served = tasks.create_task(server.serve(sockets=[listener]))
            async with httpx2.AsyncClient(base_url=url, timeout=30.0) as client:
                await gateway.waiters.attached.wait()
                yield ServedGateway(url, client, gateway, server, hands, other, registry)
            server.stop()
            await served
            running.cancel()
    finally:
        await gateway.close()
        await other.close()
        hands.close()


@asynccontextmanager
async def serving_a_fleet(mongo_url: str, amqp_url: str) -> AsyncIterator[ServedGateway]:
    """Serve a gateway that asks for no key, with a model, a dataset and the host `h-1`."""
    async with serving(mongo_url, amqp_url) as served:
        await fill_catalog(served.store)
        online = HostOnline(slots=2, engine=EngineFacts(version="29", api_version="1.44"))
        await served.store.hosts.come_online("h-1", "i-1", online)
        yield served


@contextmanager
def frozen(*servers: MongoDB | RabbitMQ) -> Iterator[None]:
    """Stop servers from running, with their sockets open: they take bytes and answer nothing."""
    for server in servers:
        server.pause()
    try:
        yield
    finally:
        for server in servers:
            server.resume()


async def messages(broker: Broker, count: int) -> list[Delivery]:
    """Take so many messages, of any kind, off the queue of the dispatcher."""
    taken: list[Delivery] = []
    async with asyncio.timeout(10), broker.subscribe(JOBS_QUEUE, prefetch=50) as source:
        async for batch in source.batches(max_items=50):
            taken += batch
            await source.ack(batch)
            if len(taken) >= count:
                return taken
    raise AssertionError


async def make_key(
    store: Store, *scopes: Scope, expires_in_s: float | None = None, tenant: str = DEFAULT_TENANT
) -> ApiKey:
    """Record a key that may do this, as `bootstrap` does."""
    key = ApiKey.new()
    await store.api_keys.add(
        NewApiKeyRecord(
            key_id=key.key_id,
            secret_hash=key.secret_hash,
            name="test",
            scopes=frozenset(scopes),
            tenant=tenant,
            expires_in_s=expires_in_s,
        )
    )
    return key


def bearing(key: ApiKey | str) -> dict[str, str]:
    """Return the header that sends a key."""
    return {"Authorization": f"Bearer {key if isinstance(key, str) else key.text}"}


async def fill_catalog(store: Store) -> None:
    """Store the model and the dataset of the examples."""
    spec = ModelSpec(name="m-131", image="models/digits:1", profile=Profile.BATCH)
    await store.models.put(spec)
    await store.datasets.put(DatasetSpec(name="ds-550", path="/srv/ds-550"))


def problem(answer: httpx2.Response) -> Json:
    """Return the problem document of an answer, after checking that it is a whole one."""
    assert answer.headers["Content-Type"] == "application/problem+json"
    document: Json = json.loads(answer.content)
    assert document["status"] == answer.status_code
    assert document["type"] == f"urn:modelyard:problem:{document['code']}"
    assert document["title"]
    assert document["detail"]
    assert document["request_id"] == answer.headers["X-Request-Id"]
    return document
