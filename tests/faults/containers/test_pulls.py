"""A pull that takes longer than RabbitMQ waits for an acknowledgement."""

import asyncio
import re
import time
from collections.abc import Iterator

import pytest

from deploy.local.rabbitmq import RabbitMQ
from modelyard.contract.topology import host_queue
from tests.faults.conftest import Sites
from tests.faults.containers.test_containers import IMAGE
from tests.faults.harness.checked_fleet import CheckedFleet, Servers
from tests.faults.harness.raw_channel import open_raw_channel
from tests.faults.harness.registry import SlowRegistry
from tests.support.waiting import eventually

TIMEOUT_S = 10
"""In place of RabbitMQ's 30 minutes."""
TICK_S = 1
"""How often a channel looks whether it is over; 60 otherwise."""
TIMES = 2
pytestmark = [pytest.mark.faults, pytest.mark.fault(IMAGE)]


@pytest.fixture
def impatient(servers: Servers, sites: Sites) -> Iterator[None]:
    """Have RabbitMQ wait for acknowledgements only briefly.

    A channel learns both numbers when it is opened: what is open already is closed before the
    test, and what was opened in it afterwards.
    """
    broker = servers.rabbitmq
    limits = {"consumer_timeout": TIMEOUT_S * 1_000, "channel_tick_interval": TICK_S * 1_000}
    former = {name: int(broker.ctl("eval", f"{_get(name)}.")) for name in limits}
    sites.close()
    try:
        _limit(broker, limits)
        yield
    finally:
        sites.close()
        _limit(broker, former)


def _get(name: str) -> str:
    return f"element(2, application:get_env(rabbit, {name}))"


def _limit(broker: RabbitMQ, limits: dict[str, int]) -> None:
    sets = (f"application:set_env(rabbit, {name}, {value})" for name, value in limits.items())
    broker.ctl("eval", f"{', '.join(sets)}.")


@pytest.mark.usefixtures("impatient")
async def test_a_pull_may_take_longer_than_the_broker_waits_for_an_acknowledgement(
    fleet: CheckedFleet, registry: SlowRegistry
) -> None:
    job_id = fleet.job_id()
    with registry.served() as image:
        await fleet.put_probe("slow", image=image)
        operation_id = await fleet.submit("TEMP", job_id, model="slow", input={"tag": job_id})
        host_id = (await fleet.running_state(operation_id))["host_id"]
        consumer = await consumer_of(fleet, host_queue(host_id).name)

        async def trickles() -> bool:
            return bool(registry.trickles)

        await eventually(trickles, what="the pull of the last layer")
        for _ in range(TIMES):
            vhost = await asyncio.to_thread(fleet.servers.virtual_hosts.take)
            await thrown_out(f"{fleet.servers.rabbitmq.url}/{vhost}")
        one = await fleet.running_state(operation_id)
        assert (one["epoch"], one["phase"]) == (1, "pulling")
        assert await consumer_of(fleet, host_queue(host_id).name) == consumer
        registry.release()
        one = await fleet.ended(operation_id)
        assert (one["state"], one["epoch"]) == ("SUCCEEDED", 1), one
        await fleet.holds()
        assert len(fleet.collector.of(job_id)) == 1
        assert registry.trickles == 1
        await fleet.engines[host_id].remove_image(image)


async def thrown_out(amqp_url: str) -> None:
    """Hold a delivery until RabbitMQ closes the channel for it: the time out is in effect."""
    async with open_raw_channel(amqp_url) as raw:
        closed = asyncio.get_running_loop().create_future()
        raw.channel.close_callbacks.add(lambda _, error: closed.set_result(str(error)))
        queue = await raw.channel.declare_queue(
            "held", durable=True, arguments={"x-queue-type": "quorum"}
        )
        held = asyncio.Event()

        async def hold(_: object) -> None:
            held.set()

        await queue.consume(hold)
        await raw.publish(b"", exchange="", routing_key=queue.name)
        await held.wait()
        began = time.monotonic()
        async with asyncio.timeout(3 * TIMEOUT_S):
            assert "timed out" in await closed
        assert time.monotonic() - began > TIMEOUT_S - TICK_S


async def consumer_of(fleet: CheckedFleet, queue: str) -> str:
    """Return the process of RabbitMQ that is the channel of a queue's one consumer."""
    listed = await asyncio.to_thread(
        fleet.servers.rabbitmq.ctl,
        *(
            "--no-table-headers",
            "list_consumers",
            "--vhost",
            fleet.vhost,
            "queue_name",
            "channel_pid",
        ),
    )
    (found,) = re.findall(rf"^{re.escape(queue)}\t(\S+)$", listed, re.MULTILINE)
    return str(found)
