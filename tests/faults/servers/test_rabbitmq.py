"""Faults of a RabbitMQ that runs: blocked, without its queues, without its consumers."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from deploy.local.rabbitmq import RabbitMQ
from modelyard.contract.topology import (
    DEAD_QUEUE,
    HEARTBEATS_QUEUE,
    JOBS_QUEUE,
    REPORTS_QUEUE,
    host_queue,
)
from tests.faults.containers.test_containers import TAKEN
from tests.faults.gateway.test_gateway import UNSENT_S, asked, break_wire, temp
from tests.faults.harness.checked_fleet import CheckedFleet, lasts
from tests.faults.harness.consumers import all_consumed, consumed
from tests.faults.harness.load import Mix
from tests.faults.harness.proxied_fleet import ProxiedFleet
from tests.faults.harness.raw_channel import open_raw_channel
from tests.support.servers.proxy import Fault
from tests.support.waiting import eventually

BROKER = "RabbitMQ restarted; memory alarm for a minute; queue deleted; consumer cancelled"
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


@pytest.mark.parametrize(
    "alarm",
    [
        pytest.param(MEMORY, marks=pytest.mark.fault(BROKER), id="memory"),
        pytest.param(DISK, marks=pytest.mark.fault(TAKEN), id="disk"),
    ],
)
async def test_an_alarm_blocks_nobody_who_asks(fleet: CheckedFleet, alarm: Alarm) -> None:
    """What RabbitMQ can't keep it does not confirm; what is answered 202 MongoDB has."""
    load = await fleet.load(Mix(amqp=0), pause_s=0.5)
    loading = asyncio.create_task(load.run())
    await fleet.running_any()
    taken: list[str] = []
    async with alarm.raised(fleet.servers.rabbitmq):
        ends_at = time.monotonic() + alarm.lasts_s
        publishing = asyncio.create_task(fleet.doors.submit(temp(fleet), by_amqp=True))
        while time.monotonic() < ends_at:
            began = time.monotonic()
            answer = await fleet.http.post("/v1/jobs", json=temp(fleet).body)
            assert time.monotonic() - began < 2
            assert answer.status_code == 202, answer.text
            operation_id = answer.json()["operation_id"]
            fleet.doors.ledger.accept(operation_id)
            assert await fleet.database.count("operations", {"_id": operation_id})
            taken.append(operation_id)
            await lasts(5)
        assert not publishing.done(), "RabbitMQ has confirmed what it can't keep"
        assert await alarm.is_raised(fleet.servers.rabbitmq)
    fleet.invariants.disturbed()
    ids = [*await loading, *taken, await publishing]
    await fleet.holds()
    await fleet.succeeded(ids)


@pytest.mark.fault(BROKER)
@pytest.mark.parametrize("fault", [Fault.CUT, Fault.BLACKHOLE])
async def test_what_nobody_can_keep_while_an_alarm_lasts_is_refused_at_once(
    proxied: ProxiedFleet, fault: Fault
) -> None:
    """RabbitMQ blocks who publishes, and MongoDB, which takes the requests else, is away too."""
    fleet = proxied.fleet
    async with MEMORY.raised(fleet.servers.rabbitmq):
        await break_wire(proxied.gateway_mongo, fault)
        for _ in range(3):
            request = temp(fleet)
            fleet.doors.ledger.wonder(request.key)
            began = time.monotonic()
            answer = await asked(fleet, request)
            assert time.monotonic() - began < UNSENT_S
            assert answer.status_code == 503, answer.text
            assert answer.headers["Retry-After"]
        assert await MEMORY.is_raised(fleet.servers.rabbitmq)
        await proxied.gateway_mongo.heal()
    fleet.invariants.disturbed()
    await fleet.ready()
    load = await fleet.load()
    ids = await load.run()
    await fleet.holds()
    await fleet.succeeded(ids)


@pytest.mark.fault(BROKER)
@pytest.mark.parametrize(
    "queue",
    [
        JOBS_QUEUE.name,
        REPORTS_QUEUE.name,
        HEARTBEATS_QUEUE.name,
        DEAD_QUEUE.name,
        host_queue("h1").name,
    ],
)
async def test_a_queue_that_was_deleted_is_back_with_its_consumers(
    fleet: CheckedFleet, queue: str
) -> None:
    load = await fleet.load(Mix(amqp=0), pause_s=0.2)
    loading = asyncio.create_task(load.run())
    await fleet.running_any()
    async with open_raw_channel(fleet.processes.amqp_url) as raw:
        await raw.channel.queue_delete(queue)
    fleet.invariants.disturbed()
    await consumed(fleet.processes.amqp_url, queue)
    ids = await loading
    await _bury_one(fleet)
    await fleet.holds()
    await fleet.succeeded(ids)


async def _bury_one(fleet: CheckedFleet) -> None:
    """Publish what can't be read; return once the record has it, by the queue of dead letters."""
    body = b"{" + uuid.uuid4().hex.encode()
    async with open_raw_channel(fleet.processes.amqp_url) as raw:
        await raw.publish(body, headers={"Idempotency-Key": uuid.uuid4().hex})

    async def is_buried() -> bool:
        of_it = {"reason": "invalid_json", "payload": body}
        return await fleet.database.count("dead_letters", of_it) == 1

    await eventually(is_buried, what="the dead letter")


@pytest.mark.fault(BROKER)
async def test_consumers_that_were_thrown_out_are_back(fleet: CheckedFleet) -> None:
    load = await fleet.load(pause_s=0.3, one_door=True)
    loading = asyncio.create_task(load.run())
    await fleet.running_any()
    vhost = urlsplit(fleet.processes.amqp_url).path.removeprefix("/")
    for _ in range(3):
        close = ("close_all_connections", "--vhost", vhost, "a test")
        await asyncio.to_thread(fleet.servers.rabbitmq.ctl, *close)
        await consumed(fleet.processes.amqp_url, host_queue("h1").name)
    fleet.invariants.disturbed()
    await all_consumed(fleet)
    ids = await loading
    await fleet.holds()
    await fleet.succeeded(ids)
