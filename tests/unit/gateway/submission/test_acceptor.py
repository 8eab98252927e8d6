"""What a batch asks of MongoDB before it is accepted."""

from collections.abc import AsyncIterator, Sequence

import pytest
from prometheus_client import CollectorRegistry

from gateway.availability import Availability
from gateway.inference.leaving_jobs import LeavingJobs
from gateway.monitoring.metrics import GatewayMetrics
from gateway.submission.acceptor import Acceptor, PendingRequest
from gateway.submission.catalog_cache import CatalogCache
from gateway.submission.dual_write import DualWrite, Durability
from modelyard.broker import Broker
from modelyard.contract.answers import Accepted
from modelyard.contract.errors import (
    BrokerUnavailableError,
    ErrorCode,
    ModelyardError,
    StoreUnavailableError,
)
from modelyard.contract.ids import new_operation_id
from modelyard.contract.messages import MAX_BATCH, JobRequest
from modelyard.contract.states import Verb
from modelyard.store.records import NewOperation
from tests.fakes.broker_links import Call, Link
from tests.fakes.mongodb import MemoryDatabase
from tests.fakes.store import MemoryStore


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(MemoryDatabase(lambda: 0.0), link=Link())


@pytest.fixture
def taken() -> list[NewOperation]:
    """Collect what is accepted in place of writing it."""
    return []


@pytest.fixture
def acceptor(
    store: MemoryStore, taken: list[NewOperation], monkeypatch: pytest.MonkeyPatch
) -> Acceptor:
    broker = Broker("amqp://127.0.0.1:1", name="test")
    store_up = Availability("mongodb", store.ping, StoreUnavailableError)
    broker_up = Availability("rabbitmq", store.ping, BrokerUnavailableError)
    metrics = GatewayMetrics(CollectorRegistry())
    dual_write = DualWrite(store, store_up, broker, broker_up, metrics)

    async def take(new: Sequence[tuple[NewOperation, JobRequest]]) -> list[Durability]:
        taken.extend(operation for operation, _ in new)
        return [Durability(recorded=True, published=True, first=True)] * len(new)

    monkeypatch.setattr(dual_write, "take", take)
    return Acceptor(store, store_up, dual_write, CatalogCache(store), LeavingJobs(), metrics)


def naming(input_id: str, tenant: str = "default") -> PendingRequest:
    request = JobRequest(job_id="j", operation_type=Verb.INFER, input_id=input_id)
    return PendingRequest.of(request, None, tenant=tenant)


async def test_the_inputs_of_a_whole_batch_are_kept_with_one_write(
    acceptor: Acceptor, store: MemoryStore, taken: list[NewOperation]
) -> None:
    pending = [naming(new_operation_id()) for _ in range(MAX_BATCH)]
    outcomes = await acceptor.accept(pending)
    assert {one.code for one in outcomes if isinstance(one, ModelyardError)} == {
        ErrorCode.INPUT_GONE
    }
    assert taken == [], "each of the inputs is gone"
    assert store.link.calls[Call.WRITE] == 1


async def test_an_input_is_missing_only_for_those_that_it_does_not_belong_to(
    acceptor: Acceptor, store: MemoryStore, taken: list[NewOperation]
) -> None:
    async def content() -> AsyncIterator[bytes]:
        yield b"content"

    stored = await store.inputs.put("image/png", "owner", content())
    own, other = naming(stored.file_id, "owner"), naming(stored.file_id, "other")
    accepted, refused = await acceptor.accept([own, other])
    assert isinstance(accepted, Accepted)
    assert isinstance(refused, ModelyardError)
    assert refused.code is ErrorCode.INPUT_GONE
    assert taken == [own.operation]
