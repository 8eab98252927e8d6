"""Two dispatchers on real servers: one leads, and the other one when the first can't go on."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from structlog.testing import capture_logs

from deploy.local.rabbitmq import RabbitMQ
from modelyard.broker import Broker
from modelyard.contract.states import OperationState, Verb
from modelyard.contract.topology import JOBS_QUEUE
from modelyard.store import Store
from modelyard.store.leases import DISPATCHER
from tests.support.dispatcher.driver import MODEL, DispatcherDriver, running_dispatcher
from tests.support.dispatcher.scripted_host import ScriptedHost, scripted_host
from tests.support.servers.proxy import Fault, Proxy, through
from tests.support.waiting import eventually


@pytest.fixture
async def first(rabbitmq: RabbitMQ, amqp_url: str) -> AsyncIterator[tuple[Proxy, Broker]]:
    """Give the test a connection to RabbitMQ that it can cut."""
    async with Proxy(rabbitmq.port) as proxy:
        broker = Broker(through(amqp_url, proxy), name="first")
        yield proxy, broker
        await broker.close()


async def term(store: Store) -> int:
    found = await store.leases._collection.find_one({"_id": DISPATCHER})
    return int(found["term"]) if found else 0


async def terms(store: Store, wanted: int) -> None:
    async def it_is() -> bool:
        return await term(store) == wanted

    await eventually(it_is, what=f"term {wanted}")


async def works(driver: DispatcherDriver, host: ScriptedHost) -> None:
    """Have an operation dispatched and recorded."""
    operation_id = await driver.submit(Verb.TEMP, f"job-{await term(driver.store)}", input=1)
    await host.finish(await host.command())
    await driver.operation(operation_id, OperationState.SUCCEEDED)


async def test_a_standby_leads_when_the_leader_is_stopped(
    store: Store, broker: Broker, first: tuple[Proxy, Broker]
) -> None:
    await store.models.put(MODEL)
    driver = DispatcherDriver(store, broker)
    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(scripted_host(broker, "h1"))
        async with running_dispatcher(store, first[1]):
            await works(driver, host)
            await stack.enter_async_context(running_dispatcher(store, broker))
            assert await broker.consumer_count(JOBS_QUEUE.name) == 1
        await terms(store, 2)
        await works(driver, host)


async def test_a_leader_that_alone_is_cut_off_from_rabbitmq_is_replaced(
    store: Store,
    broker: Broker,
    first: tuple[Proxy, Broker],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dispatcher.service.BROKER_AWAY_S", 1.0)
    await store.models.put(MODEL)
    driver = DispatcherDriver(store, broker)
    proxy, its_own = first
    async with scripted_host(broker, "h1") as host, running_dispatcher(store, its_own):
        await works(driver, host)
        async with running_dispatcher(store, broker):
            await proxy.cut()
            await terms(store, 2)
            await works(driver, host)
            await proxy.heal()
            assert proxy.fault is Fault.NONE
        await terms(store, 3)
        await works(driver, host)


async def test_a_deposed_leader_stops_and_leads_again_in_a_new_term(
    store: Store, broker: Broker
) -> None:
    """Another one got the lease, as after a jump of the database's clock, and is gone."""
    await store.models.put(MODEL)
    driver = DispatcherDriver(store, broker)
    with capture_logs() as logs:
        async with scripted_host(broker, "h1") as host, running_dispatcher(store, broker):
            await works(driver, host)
            other: dict[str, Any] = {"holder": "another", "term": 2}
            await store.leases._collection.update_one({"_id": DISPATCHER}, {"$set": other})
            await terms(store, 3)
            await works(driver, host)
    events = [line["event"] for line in logs]
    assert events.count("dispatcher.leading") == 2
    assert events.index("dispatcher.term_over") > events.index("dispatcher.leading")
