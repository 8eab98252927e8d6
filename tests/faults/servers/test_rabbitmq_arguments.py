"""Queues that have other arguments than ours: who needs them ends at once, with a word."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy.local.rabbitmq import RabbitMQ
from modelyard.contract.topology import DEAD_QUEUE, JOBS_QUEUE, Queue, queues_of_host
from tests.faults.conftest import Sites
from tests.faults.harness.checked_fleet import Servers, Site, make_site, open_checked_fleet
from tests.faults.harness.consumers import consumed
from tests.faults.harness.raw_channel import RawChannel, open_raw_channel
from tests.support.waiting import eventually

ARGUMENTS = "Queue declared with other arguments"
LIMIT = "x-delivery-limit"
OTHER = 31
ENDED_WITHIN_S = 20
CONNECTIONS_AT_START = 3
CONNECTIONS_OF_AN_ENROLMENT = 24
CONNECTIONS_WHILE_RUNNING = 16
"""Each of a dispatcher's four consumers may come back, look, declare; and it may publish."""
_NAMED = re.compile(r"client-provided name: (modelyard [a-z0-9 ]+)")
pytestmark = [pytest.mark.faults, pytest.mark.fault(ARGUMENTS)]


@pytest.fixture
async def idle_site(servers: Servers, sites: Sites, folder: Path) -> AsyncIterator[Site]:
    """Give the test a site none of whose processes runs."""
    await asyncio.to_thread(sites.close)
    site = make_site(servers, folder, dispatchers=1)
    site.intact = False
    yield site
    await asyncio.to_thread(site.close)


async def test_a_queue_with_other_arguments_ends_the_dispatcher_with_a_word(
    idle_site: Site,
) -> None:
    processes = idle_site.processes
    async with open_raw_channel(processes.amqp_url) as raw:
        await _declare_otherwise(raw, JOBS_QUEUE)
    with _few_connections(idle_site.servers.rabbitmq, most=CONNECTIONS_AT_START):
        await asyncio.to_thread(processes.launch, "dispatcher")
        await _ended(idle_site, "dispatcher")
    _told(idle_site, "dispatcher", JOBS_QUEUE)
    await _mended(idle_site, JOBS_QUEUE)


@pytest.mark.parametrize("queue", queues_of_host("h1"), ids=["control", "commands"])
async def test_a_hosts_queue_with_other_arguments_ends_its_worker_alone_with_a_word(
    idle_site: Site, queue: Queue
) -> None:
    """The dispatcher, which declares it, goes on for all the others."""
    processes = idle_site.processes
    async with open_raw_channel(processes.amqp_url) as raw:
        await _declare_otherwise(raw, queue)
    await asyncio.to_thread(processes.launch, "dispatcher")
    await consumed(processes.amqp_url, DEAD_QUEUE.name)
    with _few_connections(idle_site.servers.rabbitmq, most=CONNECTIONS_OF_AN_ENROLMENT):
        await asyncio.to_thread(processes.launch, "worker-h1")
        await _ended(idle_site, "worker-h1")
    _told(idle_site, "worker-h1", queue)
    assert processes.dispatcher.running
    await asyncio.to_thread(processes.dispatcher.stop)
    await _mended(idle_site, queue)


async def test_a_queue_made_anew_with_other_arguments_ends_a_dispatcher_that_runs_with_a_word(
    idle_site: Site,
) -> None:
    processes = idle_site.processes
    await asyncio.to_thread(processes.launch, "dispatcher")
    await consumed(processes.amqp_url, DEAD_QUEUE.name)
    async with open_raw_channel(processes.amqp_url) as raw:
        await raw.channel.queue_delete(DEAD_QUEUE.name)
        await _declare_otherwise(raw, DEAD_QUEUE)
    # A queue that is back soon enough keeps its consumers, whatever its arguments are.
    vhost = processes.amqp_url.rpartition("/")[2]
    rabbitmq = idle_site.servers.rabbitmq
    with _few_connections(rabbitmq, most=CONNECTIONS_WHILE_RUNNING):
        await asyncio.to_thread(rabbitmq.ctl, "close_all_connections", "--vhost", vhost, "test")
        await _ended(idle_site, "dispatcher")
    _told(idle_site, "dispatcher", DEAD_QUEUE)
    await _mended(idle_site, DEAD_QUEUE)


async def _declare_otherwise(raw: RawChannel, queue: Queue) -> None:
    other: dict[str, Any] = {**queue.arguments, LIMIT: OTHER}
    await raw.channel.declare_queue(queue.name, durable=True, arguments=other)


async def _ended(site: Site, process: str) -> None:
    async def it_has() -> bool:
        return not site.processes.services[process].running

    await eventually(it_has, within_s=ENDED_WITHIN_S, what=f"the end of {process}")


def _told(site: Site, process: str, queue: Queue) -> None:
    """Look that the process has named the queue and both values, and needed no traceback."""
    said = site.processes.services[process].daemon.log_end()
    assert "Traceback" not in said
    for word in (queue.name, LIMIT, str(queue.arguments[LIMIT]), str(OTHER)):
        assert word in said


@contextmanager
def _few_connections(rabbitmq: RabbitMQ, *, most: int) -> Iterator[None]:
    """Look at RabbitMQ's log for how many connections processes of ours make meanwhile."""
    log = rabbitmq.daemon.log
    before = log.stat().st_size
    yield
    made = _NAMED.findall(log.read_bytes()[before:].decode(errors="replace"))
    assert 0 < len(made) <= most, Counter(made)


async def _mended(site: Site, queue: Queue) -> None:
    """Delete the queue, start everything, and look that all works."""
    async with open_raw_channel(site.processes.amqp_url) as raw:
        await raw.channel.queue_delete(queue.name)
    await asyncio.to_thread(site.processes.start)
    async with open_checked_fleet(site) as fleet:
        load = await fleet.load()
        ids = await load.run()
        await fleet.holds()
        await fleet.succeeded(ids)
        site.intact = True
