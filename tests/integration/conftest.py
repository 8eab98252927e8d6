"""What several integration tests start from."""

from collections.abc import AsyncIterator

import pytest

from modelyard.broker import Broker
from modelyard.contract.catalog.entries import DatasetSpec
from modelyard.store import Store
from tests.support.dispatcher.driver import MODEL, DispatcherDriver, running_dispatcher


@pytest.fixture
async def driver(store: Store, broker: Broker) -> AsyncIterator[DispatcherDriver]:
    """Run a dispatcher with one model and one dataset in its catalog."""
    await store.models.put(MODEL)
    await store.datasets.put(DatasetSpec(name="ds-550", path="/srv/ds-550"))
    async with running_dispatcher(store, broker):
        yield DispatcherDriver(store, broker)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rests and graces pass quickly; what follows from them stays the same."""
    monkeypatch.setattr("modelyard.contract.retries.BASE_S", 0.2)
    monkeypatch.setattr("dispatcher.maintenance.host_watch.HEARING_BEFORE_SUSPECT_S", 0.0)
    monkeypatch.setattr("dispatcher.maintenance.host_watch.HEARING_BEFORE_LOST_S", 0.0)
