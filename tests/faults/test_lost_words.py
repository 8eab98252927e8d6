"""Words between dispatchers and workers that are lost, and words that end who reads them."""

import asyncio
import itertools

import pytest

from modelyard.contract.topology import REPORTS_QUEUE
from modelyard.process.crash_points import VARIABLE
from tests.faults.casualties import HOST, tagged, works_again
from tests.faults.wire import open_wire
from tests.faults.yard import DISPATCHERS, Yard
from tests.support.invariants.outside import queues
from tests.support.waiting import eventually

DELETED = "RabbitMQ restarted; memory alarm for a minute; queue deleted; consumer cancelled"
POISON = "Poison message: not JSON, too big, unknown verb, crashes the consumer"
WORKER = f"worker-{HOST}"
MOST_BOOTS = 20
BEFORE_ACCEPT = "worker.before_accept"
pytestmark = pytest.mark.faults


@pytest.mark.fault(DELETED)
async def test_an_end_that_was_in_a_deleted_queue_is_told_again(yard: Yard) -> None:
    job_id = yard.job_id()
    await yard.loaded(job_id)
    running = [
        await tagged(yard, "TEMP", yard.job_id(), sleep=3, model="load-http"),
        await tagged(yard, "INFER", job_id, sleep=3),
    ]
    for operation_id in running:
        await yard.running(operation_id)
        await yard.running_state(operation_id)
    await yard.stop(*DISPATCHERS)
    await eventually(lambda: _have_ended(yard, running), within_s=30, what="the ends in the queue")
    async with open_wire(yard.fleet.amqp_url) as wire:
        await wire.channel.queue_delete(REPORTS_QUEUE.name)
    for name in DISPATCHERS:
        await yard.launch(name)
    await yard.succeeded([(await yard.ended(one))["_id"] for one in running])
    await yard.holds()
    logs = [yard.service(name).daemon.log.read_text() for name in DISPATCHERS]
    assert any("reports.lost" in log for log in logs), "the queue did not hold the ends"


async def _have_ended(yard: Yard, operation_ids: list[str]) -> bool:
    """Tell whether all runs are over and there are reports that nobody has read."""
    runs = [run for one in operation_ids for run in yard.collector.of(one)]
    listed = await queues(yard.servers.rabbitmq, yard.fleet.amqp_url)
    unread = sum(one.messages for one in listed if one.name == REPORTS_QUEUE.name)
    return all(run.ended is not None for run in runs) and unread >= len(operation_ids)


@pytest.mark.fault(POISON)
async def test_a_command_that_ends_each_worker_unheard_is_given_up(yard: Yard) -> None:
    await yard.put_probe("on-h1", host_labels={"name": HOST})
    await yard.stop(WORKER)
    one = await yard.submit("TEMP", yard.job_id(), model="on-h1", input={})
    neighbour = await yard.submit("TEMP", yard.job_id(), model="load-http", input={})
    for boots in itertools.count():
        assert boots < MOST_BOOTS
        await yard.launch(WORKER, **{VARIABLE: BEFORE_ACCEPT})
        await eventually(lambda: _dead_or_done(yard, one), within_s=60, what="the end of a worker")
        if yard.service(WORKER).running:
            break
        await yard.died_at(WORKER, BEFORE_ACCEPT)
    end = await yard.ended(one)
    assert (end["state"], end["error"]["code"]) == ("FAILED", "worker_interrupted"), end
    assert not yard.collector.of(one)
    await yard.succeeded([neighbour])
    await yard.stop(WORKER)
    await yard.launch(WORKER)
    await yard.online(WORKER)
    await works_again(yard)
    await yard.holds()


async def _dead_or_done(yard: Yard, operation_id: str) -> bool:
    """Tell whether the worker has died of the command, or there is none any more."""
    if not await asyncio.to_thread(lambda: yard.service(WORKER).running):
        return True
    return (await yard.states([operation_id]))["FAILED"] == 1
