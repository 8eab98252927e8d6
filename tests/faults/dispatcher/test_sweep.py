"""The sweep beside the reports that say how what it takes for forgotten has ended."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aio_pika
import pytest

from dispatcher.maintenance.open_operations import UNACCEPTED_S
from modelyard.contract.ids import operation_id_for_key
from modelyard.contract.topology import REPORTS_QUEUE
from modelyard.process.crash_points import VARIABLE
from tests.faults.harness.casualties import tagged
from tests.faults.harness.checked_fleet import DISPATCHERS, CheckedFleet, Json, lasts
from tests.faults.harness.leading import is_said, leading
from tests.faults.harness.raw_channel import open_raw_channel
from tests.support.waiting import eventually

SWEEP = "Sweep against completion"
AGAIN = "commands.published_again"
SWEEPS, RECORDS = DISPATCHERS
"""One leads until it is frozen in the middle of its sweep; then the other one leads and records."""
POINTS = ("dispatcher.sweep.after_look", "dispatcher.sweep.after_mark")
pytestmark = [pytest.mark.faults, pytest.mark.fault(SWEEP)]


@pytest.mark.parametrize("point", POINTS)
async def test_what_was_recorded_as_ended_since_the_sweep_looked_stays_as_it_is(
    fleet: CheckedFleet, point: str
) -> None:
    """Its reports lie in their queue when it looks, and are recorded before it goes on.

    A leader that is frozen keeps its place as the consumer of reports until RabbitMQ gives its
    connections up, so the next leader gets them only then.
    """
    infers, leaves = fleet.job_id(), fleet.job_id()
    await asyncio.gather(fleet.loaded(infers), fleet.loaded(leaves))
    await fleet.stop(*DISPATCHERS)
    log = fleet.service(SWEEPS).daemon.log
    before = len(log.read_text(errors="replace"))
    async with _reports_held(fleet):
        await fleet.launch(SWEEPS, **{VARIABLE: f"{point}:freeze"})
        runs = [
            await tagged(fleet, "INFER", infers, sleep=0.5),
            await tagged(fleet, "TEMP", fleet.job_id(), sleep=0.5, model="load-http"),
            await _batch(fleet),
        ]
        removal = await fleet.submit("TERMINATE", leaves)
        comes_back = await fleet.submit("DEPLOY_CREATE", leaves, model="load-http")
        swept = [*runs, removal]
        await eventually(lambda: _dispatched(fleet, swept), what="DISPATCHED")
        # They are recorded so before their commands are published.
        await eventually(lambda: _have_begun(fleet, runs, leaves), what="the beginning of all runs")
        with fleet.frozen(SWEEPS):
            await lasts(UNACCEPTED_S + 1)
            await eventually(lambda: _is_over(fleet, runs, leaves), what="the end of all runs")
        await fleet.came_to(SWEEPS, point)
        sweeps = await leading(fleet)
        (again,) = _told(log.read_text(errors="replace")[before:], AGAIN)
        assert again["count"] == len(swept)
        assert await fleet.states(swept) == {"DISPATCHED": len(swept)}
        await fleet.launch(RECORDS)
        await leading(fleet, after=sweeps.term)
    for operation_id in (*swept, comes_back):
        await fleet.ended(operation_id)
    ended = await _all_of(fleet, [*swept, comes_back], [infers, leaves])
    fleet.service(SWEEPS).resume()
    await is_said(fleet, sweeps, "dispatcher.term_over")
    await fleet.holds()
    await fleet.succeeded([*swept, comes_back])
    assert await _all_of(fleet, [*swept, comes_back], [infers, leaves]) == ended
    assert [len(fleet.collector.of(one)) for one in runs] == [1] * len(runs)
    assert (await fleet.job(leaves))["state"] == "CREATED"


@asynccontextmanager
async def _reports_held(fleet: CheckedFleet) -> AsyncIterator[None]:
    """Keep all reports from whoever subscribes later; they go back to their queue at the end."""
    held: list[aio_pika.abc.AbstractIncomingMessage] = []

    async def hold(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        held.append(message)

    async with open_raw_channel(fleet.processes.amqp_url) as raw:
        queue = await raw.channel.get_queue(REPORTS_QUEUE.name)
        await queue.consume(hold)
        yield
        assert held


async def _batch(fleet: CheckedFleet) -> str:
    """Submit a batch program that the collector knows by its operation's id."""
    key = uuid.uuid4().hex
    env = {
        "PROBE_MODE": "batch",
        "PROBE_TAG": operation_id_for_key(key),
        "PROBE_BATCH_SECONDS": "0.5",
    }
    await fleet.put_model(key, profile="batch", env=env)
    return await fleet.submit("TEMP", fleet.job_id(), key=key, model=key)


async def _dispatched(fleet: CheckedFleet, operation_ids: list[str]) -> bool:
    return await fleet.states(operation_ids) == {"DISPATCHED": len(operation_ids)}


async def _have_begun(fleet: CheckedFleet, runs: list[str], leaves: str) -> bool:
    """Tell whether each of these runs or ran, and this job's container is stopped or gone."""
    there = [one for host_id, it in fleet.engines.items() for one in await it.labelled(host_id)]
    return all(fleet.collector.of(one) for one in runs) and leaves not in {
        one.job_id for one in there if one.state == "running"
    }


async def _is_over(fleet: CheckedFleet, runs: list[str], leaves: str) -> bool:
    """Tell whether each of these ran to its end, and this job's container is gone."""
    found = [fleet.collector.of(one) for one in runs]
    there = [one for host_id, it in fleet.engines.items() for one in await it.labelled(host_id)]
    return all(run and run[0].ended is not None for run in found) and leaves not in {
        one.job_id for one in there
    }


def _told(log: str, event: str) -> list[Json]:
    """Return the lines of a log that tell of this."""
    whole = log[: log.rfind("\n") + 1]
    lines = (json.loads(line) for line in whole.splitlines() if event in line)
    return [line for line in lines if line["event"] == event]


async def _all_of(
    fleet: CheckedFleet, operation_ids: list[str], job_ids: list[str]
) -> dict[str, Json]:
    """Return all that is recorded of these."""
    operations = await fleet.database.all("operations", {"_id": {"$in": operation_ids}})
    jobs = await fleet.database.all("jobs", {"_id": {"$in": job_ids}})
    return {one["_id"]: one for one in [*operations, *jobs]}
