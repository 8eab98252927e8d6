"""Enrolment: many hosts at once, some of which can't be enrolled now."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from dispatcher.control import ControlPublisher
from dispatcher.enrolment import AT_ONCE, Enrolment
from modelyard.contract.messages import HostHello
from modelyard.contract.topology import queues_of_host
from tests.fakes.broker import MemoryBroker, MemoryRabbit
from tests.support.dispatcher.parts import SlowAnswers
from tests.support.waiting import eventually

HOSTS = [f"h{n}" for n in range(3 * AT_ONCE + 1)]


@pytest.fixture
def link() -> SlowAnswers:
    return SlowAnswers()


@pytest.fixture
def rabbit() -> MemoryRabbit:
    return MemoryRabbit()


@pytest.fixture
def broker(rabbit: MemoryRabbit) -> MemoryBroker:
    """Give the test a way to RabbitMQ of its own."""
    return MemoryBroker(rabbit, name="test")


@pytest.fixture
async def enrolment(rabbit: MemoryRabbit, link: SlowAnswers) -> AsyncIterator[Enrolment]:
    broker = MemoryBroker(rabbit, name="dispatcher", link=link)
    made = Enrolment(broker, ControlPublisher(broker))
    running = asyncio.create_task(made.run())
    yield made
    assert not running.done()
    running.cancel()


def hellos(*host_ids: str) -> list[HostHello]:
    return [HostHello(host_id=host_id, incarnation="boot-1") for host_id in host_ids]


async def enrolled(broker: MemoryBroker, *host_ids: str) -> None:
    names = [queue.name for host_id in host_ids for queue in queues_of_host(host_id)]
    await eventually(lambda: broker.has_queues(names), what="the hosts' queues")


async def test_nobody_waits_for_the_queues_of_many_hosts(
    broker: MemoryBroker, link: SlowAnswers, enrolment: Enrolment
) -> None:
    link.hold()
    enrolment.ask(hellos(*HOSTS))  # returns, whatever RabbitMQ does
    await link.held.wait()
    enrolment.ask(hellos("late"))
    link.let_go()
    await enrolled(broker, *HOSTS, "late")


async def test_a_declaration_that_fails_keeps_no_other_host_waiting(
    broker: MemoryBroker, link: SlowAnswers, enrolment: Enrolment
) -> None:
    link.fates.append("lost_before")
    enrolment.ask(hellos(*HOSTS))
    await enrolled(broker, *HOSTS[AT_ONCE:])
    assert not await broker.has_queues([queues_of_host(HOSTS[0])[0].name])
    enrolment.ask(hellos(HOSTS[0]))  # its worker says hello again
    await enrolled(broker, HOSTS[0])
