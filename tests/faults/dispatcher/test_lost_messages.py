"""Words between dispatchers and workers that are lost, and words that end who reads them."""

import asyncio
import itertools

import pytest

from modelyard.contract.topology import REPORTS_QUEUE
from modelyard.process.crash_points import VARIABLE
from tests.faults.harness.casualties import HOST, tagged, works_again
from tests.faults.harness.checked_fleet import DISPATCHERS, CheckedFleet
from tests.faults.harness.raw_channel import open_raw_channel
from tests.support.invariants.outside import queues
from tests.support.waiting import eventually

DELETED = "RabbitMQ restarted; memory alarm for a minute; queue deleted; consumer cancelled"
POISON = "Poison message: not JSON, too big, unknown verb, crashes the consumer"
WORKER = f"worker-{HOST}"
MOST_BOOTS = 20
BEFORE_ACCEPT = "worker.before_accept"
pytestmark = pytest.mark.faults


@pytest.mark.fault(DELETED)
async def test_an_end_that_was_in_a_deleted_queue_is_told_again(fleet: CheckedFleet) -> None:
    job_id = fleet.job_id()
    await fleet.loaded(job_id)
    running = [
        await tagged(fleet, "TEMP", fleet.job_id(), sleep=3, model="load-http"),
        await tagged(fleet, "INFER", job_id, sleep=3),
    ]
    for operation_id in running:
        await fleet.running(operation_id)
        await fleet.running_state(operation_id)
    await fleet.stop(*DISPATCHERS)
    await eventually(lambda: _have_ended(fleet, running), within_s=30, what="the ends in the queue")
    async with open_raw_channel(fleet.processes.amqp_url) as raw:
        await raw.channel.queue_delete(REPORTS_QUEUE.name)
    for name in DISPATCHERS:
        await fleet.launch(name)
    await fleet.succeeded([(await fleet.ended(one))["_id"] for one in running])
    await fleet.holds()
    logs = [fleet.service(name).daemon.log.read_text() for name in DISPATCHERS]
    assert any("reports.lost" in log for log in logs), "the queue did not hold the ends"


async def _have_ended(fleet: CheckedFleet, operation_ids: list[str]) -> bool:
    """Tell whether all runs are over and there are reports that nobody has read."""
    runs = [run for one in operation_ids for run in fleet.collector.of(one)]
    listed = await queues(fleet.servers.rabbitmq, fleet.processes.amqp_url)
    unread = sum(one.messages for one in listed if one.name == REPORTS_QUEUE.name)
    return all(run.ended is not None for run in runs) and unread >= len(operation_ids)


@pytest.mark.fault(POISON)
async def test_a_command_that_ends_each_worker_unheard_is_given_up(fleet: CheckedFleet) -> None:
    await fleet.put_probe("on-h1", host_labels={"name": HOST})
    await fleet.stop(WORKER)
    one = await fleet.submit("TEMP", fleet.job_id(), model="on-h1", input={})
    neighbour = await fleet.submit("TEMP", fleet.job_id(), model="load-http", input={})
    for boots in itertools.count():
        assert boots < MOST_BOOTS
        await fleet.launch(WORKER, **{VARIABLE: BEFORE_ACCEPT})
        await eventually(lambda: _dead_or_done(fleet, one), within_s=60, what="the end of a worker")
        if fleet.service(WORKER).running:
            break
        await fleet.died_at(WORKER, BEFORE_ACCEPT)
    end = await fleet.ended(one)
    assert (end["state"], end["error"]["code"]) == ("FAILED", "worker_interrupted"), end
    assert not fleet.collector.of(one)
    await fleet.succeeded([neighbour])
    await fleet.stop(WORKER)
    await fleet.launch(WORKER)
    await fleet.online(WORKER)
    await works_again(fleet)
    await fleet.holds()


async def _dead_or_done(fleet: CheckedFleet, operation_id: str) -> bool:
    """Tell whether the worker has died of the command, or there is none any more."""
    if not await asyncio.to_thread(lambda: fleet.service(WORKER).running):
        return True
    return (await fleet.states([operation_id]))["FAILED"] == 1
