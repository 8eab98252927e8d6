"""A running dispatcher on real servers, and the ways to talk to it."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CollectorRegistry

from dispatcher.leadership import Term
from dispatcher.metrics import DispatcherMetrics
from dispatcher.service import Dispatcher, Leader
from dispatcher.settings import DispatcherSettings
from modelyard.broker import Broker
from modelyard.contract.catalog.entries import ModelSpec, Profile
from modelyard.contract.ids import operation_id_for_key
from modelyard.contract.message_types import SUBMISSION_TYPE
from modelyard.contract.messages import JobRequest, Submission, SubmittedRequest
from modelyard.contract.states import OperationState, Verb
from modelyard.contract.topology import JOBS, SUBMIT_KEY
from modelyard.store import Store
from modelyard.store.records import DeadLetter, JobRecord, OperationRecord
from tests.support.waiting import eventually

MODEL = ModelSpec(name="m-131", image="x/y", profile=Profile.OPEN_INFERENCE, port=8080)


class DispatcherDriver:
    """A running dispatcher and the ways to talk to it."""

    def __init__(self, store: Store, broker: Broker) -> None:
        self.store = store
        self.broker = broker

    async def publish(self, body: object, *, key: str | None = None, priority: int = 0) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.broker.publish(JOBS, SUBMIT_KEY, raw, message_id=key, priority=priority)

    async def submission(self, *requests: tuple[str, JobRequest]) -> None:
        """Publish as a gateway does."""
        message = Submission(
            requests=tuple(
                SubmittedRequest(operation_id=key, request=request) for key, request in requests
            )
        )
        await self.broker.publish(
            JOBS, SUBMIT_KEY, message.model_dump_json().encode(), message_type=SUBMISSION_TYPE
        )

    async def submit(self, verb: Verb, job_id: str = "job-1", **fields: Any) -> str:
        """Publish one request and return its operation's id."""
        key = uuid.uuid4().hex
        if verb in (Verb.DEPLOY_CREATE, Verb.TEMP):
            fields.setdefault("model", "m-131")
        await self.publish({"job_id": job_id, "operation_type": verb, **fields}, key=key)
        return operation_id_for_key(key)

    async def operation(
        self,
        operation_id: str,
        *states: OperationState,
        where: Callable[[OperationRecord], bool] = lambda _: True,
    ) -> OperationRecord:
        """Return an operation once it is recorded, in one of the states if any are given."""

        async def there() -> OperationRecord | None:
            found = await self.store.operation_queries.get(operation_id)
            fits = found and (not states or found.state in states) and where(found)
            return found if fits else None

        return await eventually(there, what=f"operation {operation_id} in {states or 'any state'}")

    async def job(
        self, job_id: str, *, where: Callable[[JobRecord], bool] = lambda _: True
    ) -> JobRecord:
        async def there() -> JobRecord | None:
            found = await self.store.jobs.get(job_id)
            return found if found and where(found) else None

        return await eventually(there, what=f"job {job_id}")

    async def dead_letter(self) -> DeadLetter:
        async def there() -> DeadLetter | None:
            page = await self.store.dead_letters.page({}, after=None, limit=1)
            return (
                await self.store.dead_letters.get(page.items[0].dead_letter_id)
                if page.items
                else None
            )

        return await eventually(there, what="a dead letter")


@asynccontextmanager
async def running_dispatcher(
    store: Store, broker: Broker, *, metrics: DispatcherMetrics | None = None, **settings: Any
) -> AsyncIterator[Dispatcher]:
    """Run a dispatcher, which leads unless another one does; it gives all hosts something to do."""
    settings.setdefault("dispatcher_sweep_interval_s", 0.2)
    settings.setdefault("dispatcher_placement", "spread")
    dispatcher = Dispatcher(DispatcherSettings(**settings), store, broker, metrics)
    await dispatcher.prepare()
    async with _running(dispatcher.run()):
        yield dispatcher


@asynccontextmanager
async def running_leader(store: Store, broker: Broker, **settings: Any) -> AsyncIterator[None]:
    """Run a leader that has no lease and does not know it, beside the one that has."""
    settings.setdefault("dispatcher_sweep_interval_s", 0.2)
    leader = Leader(
        DispatcherSettings(**settings),
        store,
        broker,
        Term(0, float("inf")),
        DispatcherMetrics(CollectorRegistry()),
    )
    async with _running(leader.run()):
        yield


@asynccontextmanager
async def _running(run: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    work = asyncio.create_task(run)
    try:
        yield
    finally:
        work.cancel()
        await asyncio.wait([work])
        if not work.cancelled() and work.exception():
            raise work.exception()  # type: ignore[misc]
