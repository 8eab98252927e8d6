"""Group commit into both stores: who shares what, what order is kept, what a failure leaves."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from gateway.availability import Availability
from gateway.monitoring.metrics import GatewayMetrics
from gateway.submission.dual_write import DualWrite
from modelyard.broker import Broker
from modelyard.contract.errors import BrokerUnavailableError, StoreUnavailableError
from modelyard.contract.ids import new_operation_id
from modelyard.contract.messages import MAX_MESSAGE_BYTES, JobRequest
from modelyard.contract.states import Verb
from modelyard.store import Store
from modelyard.store.records import NewOperation

New = tuple[NewOperation, JobRequest]


class Stores:
    """MongoDB and RabbitMQ in memory; both fail, hang or go on as the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorded: list[list[str]] = []
        self.ensured: list[set[str]] = []
        self.messages: list[list[str]] = []
        self.marked: list[str] = []
        self.mark_error: Exception | None = None
        self.record_error: Exception | None = None
        self.publish_from: int | None = None
        self.store_goes_on = asyncio.Event()
        self.store_goes_on.set()
        store = Store("mongodb://127.0.0.1:1/x", name="test")
        broker = Broker("amqp://127.0.0.1:1", name="test")
        monkeypatch.setattr(store.operations, "record", self._record)
        monkeypatch.setattr(store.operations, "mark_unpublished", self._mark)
        monkeypatch.setattr(store.jobs, "ensure", self._ensure)
        monkeypatch.setattr(broker, "publish", self._publish)
        self.store_up = Availability("mongodb", self._nothing, StoreUnavailableError)
        self.broker_up = Availability("rabbitmq", self._nothing, BrokerUnavailableError)
        self.dual_write = DualWrite(
            store, self.store_up, broker, self.broker_up, GatewayMetrics(CollectorRegistry())
        )

    async def _nothing(self) -> None:
        return

    async def _record(self, new: Sequence[NewOperation]) -> list[bool]:
        await self.store_goes_on.wait()
        if self.record_error is not None:
            raise self.record_error
        self.recorded.append([one.operation_id for one in new])
        return [True] * len(new)

    async def _mark(self, operation_ids: Sequence[str]) -> None:
        if self.mark_error is not None:
            raise self.mark_error
        self.marked += operation_ids

    async def _ensure(self, job_ids: Iterable[str]) -> None:
        self.ensured.append(set(job_ids))

    async def _publish(self, _exchange: object, _key: str, body: bytes, **_: Any) -> None:
        if self.publish_from is not None and len(self.messages) >= self.publish_from:
            raise BrokerUnavailableError
        assert len(body) <= MAX_MESSAGE_BYTES
        self.messages.append([one["operation_id"] for one in json.loads(body)["requests"]])


@asynccontextmanager
async def running(dual_write: DualWrite) -> AsyncIterator[None]:
    task = asyncio.create_task(dual_write.run())
    yield
    task.cancel()


@pytest.fixture
async def stores(monkeypatch: pytest.MonkeyPatch) -> Stores:
    return Stores(monkeypatch)


def new(count: int, job_id: str = "j-1", text: str = "", verb: Verb = Verb.INFER) -> list[New]:
    request = JobRequest(job_id=job_id, operation_type=verb, input=text or 1, model="m")
    return [(NewOperation.of(new_operation_id(), request, "http"), request) for _ in range(count)]


async def test_what_arrives_together_shares_one_write_and_one_message(stores: Stores) -> None:
    taking = [asyncio.create_task(stores.dual_write.take(new(1))) for _ in range(50)]
    await asyncio.sleep(0)  # all of them stand in line now
    async with running(stores.dual_write):
        durabilities = await asyncio.gather(*taking)
    assert all(
        durability.recorded and durability.published and durability.first
        for [durability] in durabilities
    )
    assert [len(ids) for ids in stores.recorded] == [50]
    assert [len(ids) for ids in stores.messages] == [50]


async def test_a_job_is_made_readable_once(stores: Stores) -> None:
    async with running(stores.dual_write):
        await stores.dual_write.take(new(3, verb=Verb.TEMP))
        await stores.dual_write.take(new(1, verb=Verb.TEMP))
    assert stores.ensured == [{"j-1"}, set()]


async def test_a_request_that_makes_no_job_records_none(stores: Stores) -> None:
    async with running(stores.dual_write):
        await stores.dual_write.take(new(1, verb=Verb.INFER))
    assert stores.ensured == [set()]


async def test_a_batch_is_cut_by_size_and_a_break_leaves_no_gap(stores: Stores) -> None:
    batch = new(10, text="x" * 60_000)
    stores.publish_from = 1
    async with running(stores.dual_write):
        durabilities = await stores.dual_write.take(batch)
    assert [durability.published for durability in durabilities] == [True] * 4 + [False] * 6
    assert stores.messages == [[operation.operation_id for operation, _ in batch[:4]]]
    assert all(durability.recorded for durability in durabilities)
    assert stores.marked == [operation.operation_id for operation, _ in batch[4:]]


async def test_what_is_not_published_is_durable_only_if_the_record_says_so(stores: Stores) -> None:
    """Else later requests would be served first, although clients saw this one accepted."""
    stores.publish_from = 1
    stores.mark_error = StoreUnavailableError()
    async with running(stores.dual_write):
        durabilities = await stores.dual_write.take(new(10, text="x" * 60_000))
    assert [durability.recorded for durability in durabilities] == [True] * 4 + [False] * 6


async def test_a_break_is_told_to_those_behind_it_only(stores: Stores) -> None:
    stores.publish_from = 1
    first = asyncio.create_task(stores.dual_write.take(new(4, text="x" * 60_000)))
    second = asyncio.create_task(stores.dual_write.take(new(1, text="x" * 60_000)))
    await asyncio.sleep(0)
    async with running(stores.dual_write):
        assert [durability.published for durability in await first] == [True] * 4
        assert [durability.published for durability in await second] == [False]
    assert stores.broker_up.down


async def test_a_store_that_hangs_is_not_waited_for_by_the_next_one(stores: Stores) -> None:
    stores.store_goes_on.clear()
    async with running(stores.dual_write):
        [durability] = await stores.dual_write.take(new(1))
        assert (durability.recorded, durability.published) == (False, True)
        async with asyncio.timeout(0.5):
            [durability] = await stores.dual_write.take(new(1))
        assert (durability.recorded, durability.published) == (False, True)


async def test_a_write_that_is_refused_leaves_the_message(stores: Stores) -> None:
    stores.record_error = RuntimeError("not authorised")
    async with running(stores.dual_write):
        [durability] = await stores.dual_write.take(new(1))
    assert (durability.recorded, durability.published) == (False, True)
    assert not stores.store_up.down


async def test_nothing_is_durable_when_both_refuse(stores: Stores) -> None:
    stores.record_error = StoreUnavailableError()
    stores.publish_from = 0
    async with running(stores.dual_write):
        [durability] = await stores.dual_write.take(new(1))
    assert (durability.recorded, durability.published) == (False, False)
    assert stores.store_up.down
    assert stores.broker_up.down
