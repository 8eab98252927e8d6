"""What the state machine found, each as small as it could be made, without chance."""

import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any

from prometheus_client import CollectorRegistry

from dispatcher.events import EventLog
from dispatcher.leadership import Term
from dispatcher.metrics import DispatcherMetrics
from dispatcher.scheduling.commands import CommandPublisher
from dispatcher.scheduling.fleet import Fleet
from dispatcher.scheduling.footprints import LearnedFootprints
from dispatcher.scheduling.lines import Lines
from dispatcher.scheduling.memory import Memory
from dispatcher.scheduling.residency import Residents
from dispatcher.scheduling.scheduler import Scheduler
from modelyard.contract.messages import EngineFacts, HostOnline, JobRequest, OperationReport
from modelyard.contract.states import OperationState
from modelyard.store.operation_writes import DispatchClaim
from modelyard.store.records import NewOperation
from tests.fakes.broker import MemoryBroker, MemoryRabbit
from tests.fakes.mongodb import MemoryDatabase
from tests.fakes.store import MemoryStore
from tests.statemachine.catalog import MODELS

ONE = "0190c2f0-0000-7000-8000-000000000001"
ONLINE = HostOnline(slots=2, engine=EngineFacts(version="1", api_version="1"))


class Interrupted:
    """A collection after whose next bulk write something else happens first."""

    def __init__(self, collection: Any, then: Callable[[], Awaitable[None]]) -> None:
        self._collection = collection
        self._then: Callable[[], Awaitable[None]] | None = then

    def __getattr__(self, name: str) -> Any:
        return getattr(self._collection, name)

    async def bulk_write(self, *args: Any, **more: Any) -> Any:
        done = await self._collection.bulk_write(*args, **more)
        then, self._then = self._then, None
        if then is not None:
            await then()
        return done


def scheduler_on(store: MemoryStore) -> Scheduler:
    broker = MemoryBroker(MemoryRabbit(), name="test")
    term = Term(1, float("inf"))
    commands = CommandPublisher(broker, term, default_timeout_s=60.0)
    memory = Memory(Lines(store), Fleet(store), LearnedFootprints(store))
    residency = Residents(store, memory, swap_wait_s=10.0)
    log = EventLog(store, broker, term, DispatcherMetrics(CollectorRegistry()))
    return Scheduler(store, log, commands, term, memory=memory, residency=residency)


async def one_waits(store: MemoryStore) -> None:
    """Record a host, a model and an operation that is first in its job's line."""
    await store.hosts.come_online("h", "boot", ONLINE)
    await store.models.put(MODELS["recreated"])
    request = JobRequest.model_validate(
        {"job_id": "j", "operation_type": "DEPLOY_CREATE", "model": "recreated"}
    )
    await store.jobs.ensure(["j"])
    await store.operations.take_in([(NewOperation.of(ONE, request, "http"), 1)])


async def test_a_reservation_stays_if_another_dispatcher_goes_on_from_the_assignment() -> None:
    database = MemoryDatabase(time.monotonic)
    first, second = MemoryStore(database), MemoryStore(database)
    await one_waits(first)
    collection: Any = Interrupted(
        first.jobs._collection, lambda: scheduler_on(second).schedule(["j"])
    )
    first.jobs._collection = collection
    await scheduler_on(first).schedule(["j"])
    job, host = await first.jobs.get("j"), await first.hosts.get("h")
    assert job is not None
    assert host is not None
    assert (job.host_id, job.generation) == ("h", 1)
    assert [(one.job_id, one.generation) for one in host.reservations] == [("j", 1)]


async def test_an_operation_that_has_ended_is_not_published_again_in_the_record() -> None:
    database = MemoryDatabase(itertools.count().__next__)
    store = MemoryStore(database)
    await one_waits(store)
    waiting = await store.operation_queries.get(ONE)
    assert waiting is not None
    (given,) = await store.operations.claim([DispatchClaim(waiting, "h", "boot", 1)], token="t")
    report = OperationReport(
        operation_id=ONE,
        epoch=1,
        seq=1,
        job_id="j",
        generation=1,
        state=OperationState.SUCCEEDED,
    )
    assert await store.operations.apply([report], {}) == 1
    (before,) = database.documents("operations")
    await store.operations.mark_published([given])
    assert database.documents("operations") == [before]
