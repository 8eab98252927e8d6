"""Faults of RabbitMQ: gone, blocked, without its queues, with the wrong ones."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import pytest

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
from tests.faults.wire import open_wire
from tests.faults.yard import Servers, Site, Yard, lasts, make_site
from tests.support.waiting import eventually

BROKER = "RabbitMQ restarted; memory alarm for a minute; queue deleted; consumer cancelled"
ARGUMENTS = "Queue declared with other arguments"
ALARM_S = 60
BACK_S = 30
WATERMARK = "set_vm_memory_high_watermark"
pytestmark = pytest.mark.faults


@pytest.mark.fault(BROKER)
@pytest.mark.parametrize("how", ["restart", "kill"])
async def test_a_broker_that_restarts_loses_nothing_that_it_confirmed(yard: Yard, how: str) -> None:
    load = await yard.load(pause_s=0.3)
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


@pytest.mark.fault(BROKER)
async def test_a_memory_alarm_blocks_nobody_who_asks(yard: Yard) -> None:
    load = await yard.load(Mix(amqp=0), pause_s=0.5)
    loading = asyncio.create_task(load.run())
    await yard.running_any()
    broker = yard.servers.rabbitmq
    await asyncio.to_thread(broker.ctl, WATERMARK, "0")
    try:
        ends_at = time.monotonic() + ALARM_S
        while time.monotonic() < ends_at:
            began = time.monotonic()
            answer = await yard.http.post(
                "/v1/jobs", json={"job_id": "alarm", "operation_type": "TERMINATE"}
            )
            assert time.monotonic() - began < 2
            assert answer.status_code == 202, answer.text
            yard.doors.ledger.accept(answer.json()["operation_id"])
            await lasts(5)
    finally:
        await asyncio.to_thread(broker.ctl, WATERMARK, "0.4")
        yard.invariants.disturbed()
    ids = await loading
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
    load = await yard.load(pause_s=0.3)
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
