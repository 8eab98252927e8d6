"""Faults of RabbitMQ: gone, blocked, without its queues, with the wrong ones."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import pytest

from deploy.local.rabbitmq import RabbitMQ
from modelyard.contract.topology import (
    DEAD_QUEUE,
    HEARTBEATS_QUEUE,
    JOBS_QUEUE,
    REPORTS_QUEUE,
    Queue,
    host_queue,
)
from tests.faults.conftest import Sites
from tests.faults.load import Mix
from tests.faults.test_containers import TAKEN
from tests.faults.test_gateway import temp
from tests.faults.wire import open_wire
from tests.faults.yard import Servers, Site, Yard, lasts, make_site
from tests.support.waiting import eventually

BROKER = "RabbitMQ restarted; memory alarm for a minute; queue deleted; consumer cancelled"
ARGUMENTS = "Queue declared with other arguments"
BACK_S = 30
pytestmark = pytest.mark.faults


@dataclass(frozen=True)
class Alarm:
    """A limit of RabbitMQ that is set to where it is broken, and what it was."""

    resource: str
    """As RabbitMQ calls it in its list of alarms."""
    command: str
    broken: str
    former: str
    lasts_s: float

    @asynccontextmanager
    async def raised(self, broker: RabbitMQ) -> AsyncIterator[None]:
        """Have the alarm in effect meanwhile."""
        await asyncio.to_thread(broker.ctl, self.command, self.broken)
        try:

            async def it_is() -> bool:
                return await self.is_raised(broker)

            await eventually(it_is, what=f"the alarm of the {self.resource}")
            yield
        finally:
            await asyncio.to_thread(broker.ctl, self.command, self.former)

    async def is_raised(self, broker: RabbitMQ) -> bool:
        """Ask RabbitMQ itself."""
        alarms = await asyncio.to_thread(broker.ctl, "eval", "rabbit_alarm:get_alarms().")
        return f"resource_limit,{self.resource}," in alarms


MEMORY = Alarm("memory", "set_vm_memory_high_watermark", "0", "0.4", lasts_s=60)
DISK = Alarm("disk", "set_disk_free_limit", "1000000GB", "50MB", lasts_s=20)
"""A petabyte is to be free; the former limit is that of `deploy.local.rabbitmq`."""


@pytest.mark.fault(BROKER)
@pytest.mark.parametrize("how", ["restart", "kill"])
async def test_a_broker_that_restarts_loses_nothing_that_it_confirmed(yard: Yard, how: str) -> None:
    load = await yard.load(pause_s=0.3, one_door=True)
    loading = asyncio.create_task(load.run())
    await yard.running_any()
    broker = yard.servers.rabbitmq
    await asyncio.to_thread(broker.stop if how == "restart" else broker.kill)
    await lasts(3)
    await asyncio.to_thread(broker.start)
    yard.invariants.disturbed()
    ids = await loading
    await yard.holds()
    await yard.succeeded(ids)


@pytest.mark.parametrize(
    "alarm",
    [
        pytest.param(MEMORY, marks=pytest.mark.fault(BROKER), id="memory"),
        pytest.param(DISK, marks=pytest.mark.fault(TAKEN), id="disk"),
    ],
)
async def test_an_alarm_blocks_nobody_who_asks(yard: Yard, alarm: Alarm) -> None:
    """What RabbitMQ can't keep it does not confirm; what is answered 202 MongoDB has."""
    load = await yard.load(Mix(amqp=0), pause_s=0.5)
    loading = asyncio.create_task(load.run())
    await yard.running_any()
    asked: list[str] = []
    async with alarm.raised(yard.servers.rabbitmq):
        ends_at = time.monotonic() + alarm.lasts_s
        publishing = asyncio.create_task(yard.doors.submit(temp(yard), by_amqp=True))
        while time.monotonic() < ends_at:
            began = time.monotonic()
            answer = await yard.http.post("/v1/jobs", json=temp(yard).body)
            assert time.monotonic() - began < 2
            assert answer.status_code == 202, answer.text
            operation_id = answer.json()["operation_id"]
            yard.doors.ledger.accept(operation_id)
            assert await yard.database.count("operations", {"_id": operation_id})
            asked.append(operation_id)
            await lasts(5)
        assert not publishing.done(), "RabbitMQ has confirmed what it can't keep"
        assert await alarm.is_raised(yard.servers.rabbitmq)
    yard.invariants.disturbed()
    ids = [*await loading, *asked, await publishing]
    await yard.holds()
    await yard.succeeded(ids)


@pytest.mark.fault(BROKER)
@pytest.mark.parametrize(
    "queue", [JOBS_QUEUE.name, REPORTS_QUEUE.name, HEARTBEATS_QUEUE.name, host_queue("h1").name]
)
async def test_a_queue_that_was_deleted_is_back_with_its_consumers(yard: Yard, queue: str) -> None:
    load = await yard.load(Mix(amqp=0), pause_s=0.2)
    loading = asyncio.create_task(load.run())
    await yard.running_any()
    async with open_wire(yard.fleet.amqp_url) as wire:
        await wire.channel.queue_delete(queue)
    yard.invariants.disturbed()
    await consumed(yard.fleet.amqp_url, queue)
    ids = await loading
    await yard.holds()
    await yard.succeeded(ids)


@pytest.mark.fault(BROKER)
async def test_consumers_that_were_thrown_out_are_back(yard: Yard) -> None:
    load = await yard.load(pause_s=0.3, one_door=True)
    loading = asyncio.create_task(load.run())
    await yard.running_any()
    vhost = urlsplit(yard.fleet.amqp_url).path.removeprefix("/")
    for _ in range(3):
        close = ("close_all_connections", "--vhost", vhost, "a test")
        await asyncio.to_thread(yard.servers.rabbitmq.ctl, *close)
        await consumed(yard.fleet.amqp_url, host_queue("h1").name)
    yard.invariants.disturbed()
    ids = await loading
    await yard.holds()
    await yard.succeeded(ids)


async def consumed(amqp_url: str, queue: str) -> None:
    """Return once a queue exists and has a consumer."""

    async def has_one() -> bool:
        try:
            async with open_wire(amqp_url) as wire:
                found = await wire.channel.declare_queue(queue, passive=True)
                return bool(found.declaration_result.consumer_count)
        except aio_pika.exceptions.AMQPError:
            return False

    await eventually(has_one, within_s=BACK_S, what=f"a consumer of {queue}")


@pytest.fixture
async def idle_site(servers: Servers, sites: Sites, folder: Path) -> AsyncIterator[Site]:
    """Give the test a site none of whose processes runs."""
    await asyncio.to_thread(sites.close)
    site = make_site(servers, folder, dispatchers=1)
    yield site
    await asyncio.to_thread(site.close)


@pytest.mark.fault(ARGUMENTS)
@pytest.mark.parametrize(
    ("queue", "process"), [(JOBS_QUEUE, "dispatcher"), (host_queue("h1"), "worker-h1")]
)
async def test_a_queue_with_other_arguments_ends_who_needs_it_with_a_word(
    idle_site: Site, queue: Queue, process: str
) -> None:
    fleet = idle_site.fleet
    async with open_wire(fleet.amqp_url) as wire:
        other: dict[str, Any] = {**queue.arguments, "x-delivery-limit": 31}
        await wire.channel.declare_queue(queue.name, durable=True, arguments=other)
    service = fleet.services[process]
    began = time.monotonic()
    await asyncio.to_thread(fleet.launch, process)

    async def ended() -> bool:
        return not service.running

    await eventually(ended, within_s=20, what=f"the end of {process}")
    assert time.monotonic() - began < 20
    said = service.daemon.log_end()
    for word in (queue.name, "x-delivery-limit", "20", "31"):
        assert word in said
    async with open_wire(fleet.amqp_url) as wire:
        await wire.channel.queue_delete(queue.name)
    await asyncio.to_thread(fleet.start)


@pytest.mark.fault(ARGUMENTS)
async def test_a_queue_made_anew_with_other_arguments_ends_a_dispatcher_that_runs_with_a_word(
    idle_site: Site,
) -> None:
    fleet = idle_site.fleet
    service = fleet.services["dispatcher"]
    await asyncio.to_thread(fleet.launch, "dispatcher")
    await consumed(fleet.amqp_url, DEAD_QUEUE.name)
    async with open_wire(fleet.amqp_url) as wire:
        other: dict[str, Any] = {**DEAD_QUEUE.arguments, "x-delivery-limit": 31}
        await wire.channel.queue_delete(DEAD_QUEUE.name)
        await wire.channel.declare_queue(DEAD_QUEUE.name, durable=True, arguments=other)
    # A queue that is back soon enough keeps its consumers, whatever its arguments are.
    vhost = fleet.amqp_url.rpartition("/")[2]
    rabbitmq = idle_site.servers.rabbitmq
    await asyncio.to_thread(rabbitmq.ctl, "close_all_connections", "--vhost", vhost, "test")

    async def ended() -> bool:
        return not service.running

    await eventually(ended, within_s=20, what="the end of the dispatcher")
    async with open_wire(fleet.amqp_url) as wire:
        await wire.channel.queue_delete(DEAD_QUEUE.name)
    said = service.daemon.log_end()
    assert "Traceback" not in said
    for word in (DEAD_QUEUE.name, "x-delivery-limit", "1000", "31"):
        assert word in said
