"""What a batch asks of MongoDB before it is accepted."""

import pytest
from prometheus_client import CollectorRegistry

from gateway.availability import Availability
from gateway.inference.leaving_jobs import LeavingJobs
from gateway.monitoring.metrics import GatewayMetrics
from gateway.submission.acceptor import Acceptor, PendingRequest
from gateway.submission.catalog_cache import CatalogCache
from gateway.submission.dual_write import DualWrite
from modelyard.broker import Broker
from modelyard.contract.errors import (
    BrokerUnavailableError,
    ErrorCode,
    ModelyardError,
    StoreUnavailableError,
)
from modelyard.contract.ids import new_operation_id
from modelyard.contract.messages import MAX_BATCH, JobRequest
from modelyard.contract.states import Verb
from tests.fakes.broker_links import Call, Link
from tests.fakes.mongodb import MemoryDatabase
from tests.fakes.store import MemoryStore


async def test_the_inputs_of_a_whole_batch_are_kept_with_one_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    link = Link()
    store = MemoryStore(MemoryDatabase(lambda: 0.0), link=link)
    broker = Broker("amqp://127.0.0.1:1", name="test")
    store_up = Availability("mongodb", store.ping, StoreUnavailableError)
    broker_up = Availability("rabbitmq", store.ping, BrokerUnavailableError)
    metrics = GatewayMetrics(CollectorRegistry())
    dual_write = DualWrite(store, store_up, broker, broker_up, metrics)

    async def taken(new: list[object]) -> list[object]:
        assert new == [], "each of the inputs is gone"
        return []

    monkeypatch.setattr(dual_write, "take", taken)
    acceptor = Acceptor(store, store_up, dual_write, CatalogCache(store), LeavingJobs(), metrics)
    pending = [
        PendingRequest.of(
            JobRequest(job_id="j", operation_type=Verb.INFER, input_id=new_operation_id()), None
        )
        for _ in range(MAX_BATCH)
    ]
    outcomes = await acceptor.accept(pending)
    assert {one.code for one in outcomes if isinstance(one, ModelyardError)} == {
        ErrorCode.INPUT_GONE
    }
    assert link.calls[Call.WRITE] == 1
