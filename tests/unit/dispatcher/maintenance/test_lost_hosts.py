"""Hosts whose heartbeats stopped, and the work that is taken from them."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from dispatcher.control import ControlPublisher
from dispatcher.maintenance.lost_hosts import LostHosts
from dispatcher.maintenance.retries import Retries
from dispatcher.reports.fencing import Fencing
from dispatcher.reports.report_writer import ReportWriter
from modelyard.contract.errors import ErrorInfo
from modelyard.contract.messages import Heartbeat, OperationReport
from modelyard.contract.states import JobState, Liveness, OperationState, Verb
from modelyard.store.jobs import Assignment
from modelyard.store.operation_writes import DispatchClaim
from modelyard.store.records import NewOperation, OperationRecord
from tests.support.dispatcher.parts import HOST, INCARNATION, MODEL, DispatcherParts, new_operation


class Losing:
    """The repair that gives hosts up, and one host that has a loaded job."""

    def __init__(self) -> None:
        self.parts = parts = DispatcherParts()
        retries = Retries(parts.store, parts.event_log, parts.scheduler, max_attempts=3)
        control = ControlPublisher(parts.broker)
        self.lost = LostHosts(parts.store, parts.event_log, parts.scheduler, control, retries)
        fencing = Fencing(parts.store, parts.event_log, control)
        self.writer = ReportWriter(
            parts.store, parts.event_log, parts.scheduler, retries, fencing, parts.memory
        )

    def set_liveness(self, liveness: Liveness) -> None:
        """Have the host in the record as it is after a silence."""
        database = self.parts.database
        database.write("hosts", {**database.collections["hosts"][HOST], "liveness": liveness})

    async def creating(self, job_id: str) -> NewOperation:
        """Have a job's CREATE dispatched to the host."""
        store, create = self.parts.store, new_operation(Verb.DEPLOY_CREATE, job_id, model="m")
        await self.parts.put_in_line(create)
        await store.jobs.ensure([job_id])
        assignment = Assignment(job_id, 0, create.operation_id, 1, 1, HOST, spec=MODEL)
        assert await store.jobs.assign([assignment], token="t") == {job_id}
        claim = DispatchClaim(await self.parts.recorded(create), HOST, INCARNATION, 1)
        assert await store.operations.claim([claim], token="t")
        return create

    async def report_created(self, create: NewOperation) -> None:
        """Have the host report that it has created the container."""
        report = OperationReport(
            operation_id=create.operation_id,
            epoch=1,
            job_id=create.job_id or "",
            generation=1,
            state=OperationState.SUCCEEDED,
            seq=1,
            job_state=JobState.CREATED,
        )
        await self.writer.write([(HOST, report)], {})

    @property
    def told(self) -> list[str]:
        """The types of all events so far."""
        return [one["type"] for one in self.parts.database.documents("events")]


@pytest.fixture
async def losing() -> AsyncIterator[Losing]:
    made = Losing()
    await made.parts.begin()
    running = asyncio.create_task(made.parts.event_log.run())
    yield made
    running.cancel()
    await asyncio.wait([running])


async def test_a_host_that_is_heard_just_before_it_is_given_up_is_not_called_lost(
    losing: Losing,
) -> None:
    parts, hosts = losing.parts, losing.parts.store.hosts
    losing.set_liveness(Liveness.SUSPECT)
    parts.pass_time(100)
    parts.link.hold(only=1)  # the answer that it is silent
    giving_up = asyncio.create_task(losing.lost.give_up())
    await parts.link.held.wait()
    assert await hosts.beat([Heartbeat(host_id=HOST, incarnation=INCARNATION)])
    parts.link.let_go()
    await giving_up
    host = await hosts.get(HOST)
    assert host is not None
    assert host.liveness is Liveness.ONLINE
    assert losing.told == []


async def test_a_create_that_succeeds_as_its_job_is_taken_away_is_made_elsewhere(
    losing: Losing, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, jobs = losing.parts, losing.parts.store.jobs
    create = await losing.creating("new")
    unassign = jobs.unassign

    async def unassign_before_its_report(
        one: OperationRecord, error: ErrorInfo | None = None
    ) -> bool:
        done = await unassign(one, error)
        await losing.report_created(create)
        return done

    monkeypatch.setattr(jobs, "unassign", unassign_before_its_report)
    losing.set_liveness(Liveness.LOST)
    await losing.lost.take_away()
    recorded = await parts.recorded(create)
    assert (recorded.state, recorded.epoch) == (OperationState.QUEUED, 1)
    assert "operation.succeeded" not in losing.told
    assert "operation.stale_report" in losing.told
    host = await parts.store.hosts.get(HOST)
    assert host is not None
    assert host.fenced_off == {"overtaken": 1}
