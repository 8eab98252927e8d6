"""Work that a host has in hand when something happens to the host, and what becomes of it."""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from pymongo.errors import PyMongoError

from modelyard.contract.ids import operation_id_for_key
from modelyard.contract.messages import OperationReport, WorkerReports
from modelyard.contract.states import JobState, OperationState
from tests.faults.harness.checked_fleet import CheckedFleet, Json
from tests.faults.harness.raw_channel import OURS, open_raw_channel
from tests.support.invariants.histories import STALE
from tests.support.waiting import eventually

HOST = "h1"
LOST_WITHIN_S = 75.0
REPORTS_TYPE = "modelyard.reports.v1"
LATER = 100
"""Reports further on than what was read of an operation: past all that it said before it froze."""


async def admit(fleet: CheckedFleet, host_id: str, how: str, **query: Any) -> None:
    """Cordon, uncordon or drain a host."""
    answer = await fleet.http.post(f"/v1/hosts/{host_id}/{how}", params=query)
    assert answer.is_success, answer.text


@asynccontextmanager
async def only(fleet: CheckedFleet, host_id: str) -> AsyncIterator[None]:
    """Have all that is placed meanwhile placed on one host."""
    others = [other for other in fleet.processes.workers if other != host_id]
    for other in others:
        await admit(fleet, other, "cordon")
    try:
        yield
    finally:
        for other in others:
            await admit(fleet, other, "uncordon")


async def tagged(
    fleet: CheckedFleet, verb: str, job_id: str, *, sleep: float, **fields: Any
) -> str:
    """Submit what the collector knows by its operation's id."""
    key = uuid.uuid4().hex
    wish = {"sleep": sleep, "tag": operation_id_for_key(key)}
    return await fleet.submit(verb, job_id, key=key, input=wish, **fields)


@dataclass(frozen=True)
class Work:
    """What one host has in hand."""

    temps: list[str]
    """Two of a server and a batch program; all may run elsewhere."""
    infers: list[str]
    """They run, and are not made again."""
    waiting: str
    """An inference that waits behind the others for the job that comes back."""
    held: str
    """A job that is LOST with its host."""
    recreated: str
    """A job that comes back elsewhere."""
    operations: list[Json]
    """The records of what runs, as they were before anything happened."""


async def busy_host(fleet: CheckedFleet, *, seconds: float) -> Work:
    """Give the first host jobs, and operations that run for so many seconds."""
    await fleet.put_probe("comes-back", max_concurrency=2, on_host_lost="recreate")
    held, recreated = fleet.job_id(), fleet.job_id()
    batch_key = uuid.uuid4().hex
    env = {
        "PROBE_MODE": "batch",
        "PROBE_TAG": operation_id_for_key(batch_key),
        "PROBE_BATCH_SECONDS": str(seconds),
    }
    await fleet.put_model(batch_key, profile="batch", env=env)
    async with only(fleet, HOST):
        await fleet.loaded(held)
        await fleet.loaded(recreated, model="comes-back")
        temps = [
            await tagged(fleet, "TEMP", fleet.job_id(), sleep=seconds, model="load-http")
            for _ in range(2)
        ]
        temps.append(await fleet.submit("TEMP", fleet.job_id(), key=batch_key, model=batch_key))
        infers = [
            await tagged(fleet, "INFER", job_id, sleep=seconds)
            for job_id in (held, recreated, recreated)
        ]
        waiting = await tagged(fleet, "INFER", recreated, sleep=0)
        for operation_id in (*temps, *infers):
            await fleet.running(operation_id)
        running = [await fleet.running_state(one) for one in (*temps, *infers)]
    assert {one["host_id"] for one in running} == {HOST}
    return Work(temps, infers, waiting, held, recreated, running)


async def done_elsewhere(fleet: CheckedFleet, work: Work, *, host_id: str = "h2") -> None:
    """Look that what may run elsewhere did, and that the rest says why it did not."""
    await fleet.succeeded([*work.temps, work.waiting])
    for operation_id in work.temps:
        one = await fleet.ended(operation_id)
        assert (one["host_id"], one["epoch"], one["generation"]) == (host_id, 2, 2), one
        assert one["failures"] == 1, one
    for operation_id in work.infers:
        one = await fleet.ended(operation_id)
        assert (one["state"], one["error"]["code"]) == ("FAILED", "host_lost"), one
        assert one["epoch"] == 1, one
    held, recreated = await fleet.job(work.held), await fleet.job(work.recreated)
    assert (held["state"], held["error"]["code"]) == ("LOST", "host_lost")
    assert (recreated["state"], recreated["host_id"]) == ("LOADED", host_id), recreated
    for job_id in (work.held, work.recreated):
        assert await fleet.database.count("events", {"type": "job.lost", "job_id": job_id}) == 1


async def works_again(fleet: CheckedFleet) -> None:
    """Look that the host takes new work."""
    async with only(fleet, HOST):
        one = await fleet.done("TEMP", fleet.job_id(), model="load-http", input={})
    assert one["host_id"] == HOST


async def incarnation(fleet: CheckedFleet) -> str:
    """Return the boot of the host's worker that is recorded."""
    found: str = (await fleet.host(HOST))["incarnation"]
    return found


async def back(fleet: CheckedFleet, former: str, *, within_s: float = 60) -> None:
    """Return once the host is online as another incarnation than the former one."""

    async def it_is() -> bool:
        host = await fleet.host(HOST)
        return bool(host["liveness"] == "ONLINE" and host["incarnation"] != former)

    await eventually(it_is, within_s=within_s, what=f"a new incarnation of {HOST}")


async def report_late(fleet: CheckedFleet, work: Work) -> None:
    """Report the success of all that ran, in the name of the boot that is lost."""
    reports = [
        OperationReport(
            operation_id=one["_id"],
            epoch=one["epoch"],
            seq=one["seq"] + LATER,
            job_id=one["job_id"],
            generation=one["generation"],
            state=OperationState.SUCCEEDED,
            job_state=JobState.TERMINATED if one["verb"] == "TEMP" else None,
            result_json='"late"',
        )
        for one in work.operations
    ]
    message = WorkerReports(
        host_id=HOST, incarnation=work.operations[0]["incarnation"], operations=tuple(reports)
    )
    async with open_raw_channel(fleet.processes.amqp_url) as raw:
        await raw.publish(
            message.model_dump_json().encode(),
            exchange="modelyard.reports",
            routing_key=HOST,
            type=REPORTS_TYPE,
            user_id=OURS,
        )


async def only_in_the_log(fleet: CheckedFleet, work: Work) -> None:
    """Return once each late report is in the log."""
    ids = [one["_id"] for one in work.operations]
    wanted = {"type": "operation.stale_report", "operation_id": {"$in": ids}}

    async def all_of_them() -> bool:
        noted = await fleet.database.all("events", wanted)
        return {one["operation_id"] for one in noted} == set(ids)

    await eventually(all_of_them, within_s=20, what="a note of each late report")


async def counted_as_logged(fleet: CheckedFleet) -> None:
    """Return once the host's document counts the late reports that the log has of it."""

    async def as_many() -> bool:
        wanted = {"type": {"$in": sorted(STALE)}, "host_id": HOST}
        noted = Counter(one["detail"]["why"] for one in await fleet.database.all("events", wanted))
        counted: Counter[str] = Counter((await fleet.host(HOST)).get("fenced_off", {}))
        return bool(noted) and counted == noted

    await eventually(as_many, within_s=20, what="a count of each late report")


@dataclass
class Releases:
    """Counts how often each reservation of the host appears and goes; I5 is the sampler's."""

    fleet: CheckedFleet
    taken: Counter[tuple[str, int]] = field(default_factory=Counter)
    freed: Counter[tuple[str, int]] = field(default_factory=Counter)

    @asynccontextmanager
    async def counted(self) -> AsyncIterator["Releases"]:
        """Look at the host's document many times a second meanwhile."""
        held = await self._held()
        self.taken.update(held)
        looking = asyncio.create_task(self._look(held))
        try:
            yield self
        finally:
            looking.cancel()
            await asyncio.wait((looking,))

    async def _look(self, held: set[tuple[str, int]]) -> None:
        while True:
            await asyncio.sleep(0.05)
            try:
                now = await self._held()
            except PyMongoError:
                continue
            self.taken.update(now - held)
            self.freed.update(held - now)
            held = now

    async def _held(self) -> set[tuple[str, int]]:
        host = await self.fleet.host(HOST)
        return {(one["job_id"], one["generation"]) for one in host["reservations"]}
