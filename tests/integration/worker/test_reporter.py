"""Reports of a worker over a real broker."""

import asyncio

from deploy.local.rabbitmq import RabbitMQ
from modelyard.broker import Broker
from modelyard.contract.message_types import HELLO_TYPE
from modelyard.contract.messages import HostHello
from modelyard.contract.topology import HEARTBEATS_QUEUE, REPORTS_QUEUE
from tests.support.dispatcher.enrolled import enrol
from tests.support.waiting import eventually
from tests.support.worker.broker import report, reporter_on
from tests.support.worker.harness import HOST


async def test_reports_flow_again_after_their_queue_was_made_anew_without_this_host(
    rabbitmq: RabbitMQ, amqp_url: str, broker: Broker
) -> None:
    await enrol(broker, HOST)
    vhost = amqp_url.rpartition("/")[2]
    rabbitmq.ctl("delete_queue", REPORTS_QUEUE.name, "-p", vhost)
    # As a dispatcher does that has come to its own queues again: it binds no host.
    await broker.declare([REPORTS_QUEUE, HEARTBEATS_QUEUE])
    reporter = reporter_on(broker)
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        delivering = tasks.create_task(reporter.deliver([report(1)]))
        async with broker.subscribe(HEARTBEATS_QUEUE, prefetch=10) as subscription:
            [hello] = await anext(subscription.batches(max_items=1))
        assert hello.type == HELLO_TYPE
        await enrol(broker, HostHello.model_validate_json(hello.body).host_id)
        await delivering
        running.cancel()

    async def arrived() -> bool:
        return await broker.message_count(REPORTS_QUEUE.name) == 1

    await eventually(arrived)
