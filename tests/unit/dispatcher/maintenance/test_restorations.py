"""Jobs that were found down: one death is one restart, whoever finds it, and how often."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from dispatcher.control import ControlPublisher
from dispatcher.maintenance.orphans import Orphans
from dispatcher.maintenance.reconciler import InventoryReport, Reconciler
from dispatcher.maintenance.recovery import JobRestoration
from dispatcher.maintenance.retries import Retries
from dispatcher.reports.fencing import Fencing
from dispatcher.reports.report_writer import ReportWriter
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.messages import Inventory, InventoryItem, OperationReport
from modelyard.contract.states import JobState, OperationState, Verb
from modelyard.store.jobs import JobEffect
from modelyard.store.records import JobRecord, NewOperation
from tests.support.dispatcher.parts import (
    HOST,
    INCARNATION,
    JOB,
    MODEL,
    DispatcherParts,
    new_operation,
)


class Dying:
    """A loaded job that is restarted once, and two inferences that its host was given."""

    def __init__(self) -> None:
        self.parts = parts = DispatcherParts()
        self.infers = [new_operation(), new_operation()]
        control = ControlPublisher(parts.broker)
        retries = Retries(parts.store, parts.event_log, parts.scheduler, max_attempts=3)
        fencing = Fencing(parts.store, parts.event_log, control)
        self._writer = ReportWriter(
            parts.store, parts.event_log, parts.scheduler, retries, fencing, parts.memory
        )
        self._reconciler = Reconciler(
            parts.store,
            parts.event_log,
            parts.scheduler,
            control,
            retries,
            Orphans(grace_s=100),
        )
        self.restoration = JobRestoration(parts.store, parts.scheduler)

    def may_restart(self, times: int) -> None:
        spec = MODEL.model_copy(update={"restart": "on_failure", "max_restarts": times})
        job = self.parts.database.collections["jobs"][JOB]
        self.parts.database.write("jobs", {**job, "spec": spec.model_dump_json()})

    async def begin(self) -> None:
        await self.parts.begin()
        self.may_restart(1)
        assert await self.parts.first_pass.take(self.infers) == []

    async def look(self) -> None:
        """Have the host's inventory show that the container has exited."""
        down = InventoryItem(
            operation_id=self.infers[0].operation_id,
            container_id="c" * 64,
            job_id=JOB,
            generation=1,
            running=False,
            exit_code=137,
        )
        found = InventoryReport(HOST, INCARNATION, Inventory(items=(down,)), 1)
        await self._reconciler.handle_inventories([found])

    async def found_dead(self, infer: NewOperation) -> None:
        """Have an inference report that it found the container dead."""
        report = OperationReport(
            operation_id=infer.operation_id,
            epoch=1,
            job_id=JOB,
            generation=1,
            state=OperationState.FAILED,
            seq=1,
            job_state=JobState.FAILED,
            error=ErrorInfo.of(ErrorCode.EXITED),
        )
        await self._writer.write([(HOST, report)], {})

    async def job(self) -> JobRecord:
        job = await self.parts.store.jobs.get(JOB)
        assert job is not None
        return job

    async def line(self) -> list[tuple[Verb | None, str]]:
        """Return verb and source of what is in line, in its order."""
        (line,) = (await self.parts.store.jobs.lines([JOB])).lines
        return [(one.verb, one.source) for one in line.operations]


@pytest.fixture
async def dying() -> AsyncIterator[Dying]:
    made = Dying()
    await made.begin()
    running = asyncio.create_task(made.parts.event_log.run())
    yield made
    running.cancel()
    await asyncio.wait([running])


CREATE, LOAD = (Verb.DEPLOY_CREATE, "system"), (Verb.DEPLOY_LOAD, "system")


async def test_a_death_that_inferences_find_is_one_restart(dying: Dying) -> None:
    for one in dying.infers:
        await dying.found_dead(one)
    job = await dying.job()
    assert (job.state, job.restarts) == (JobState.FAILED, 1)
    await dying.restoration.put_in_line()
    assert await dying.line() == [CREATE, LOAD]


@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.parametrize("in_line", [False, True])
async def test_a_death_that_an_inventory_and_an_inference_find_is_one_restart(
    dying: Dying, *, in_line: bool, most: int
) -> None:
    dying.may_restart(most)
    await dying.look()
    job = await dying.job()
    assert (job.state, job.restarts) == (JobState.CREATED, 1)
    if in_line:
        await dying.restoration.put_in_line()
    await dying.found_dead(dying.infers[0])
    job = await dying.job()
    assert (job.state, job.restarts, job.host_id) == (JobState.FAILED, 1, None)
    assert job.recovery is not None
    assert job.recovery.to is JobState.LOADED
    await dying.restoration.put_in_line()
    assert (await dying.line())[:2] == [CREATE, LOAD]
    dying.parts.pass_time(60)
    await dying.parts.store.operations.wake_after_backoff(limit=9)
    await dying.parts.scheduler.schedule([JOB])
    ended = [one["state"] for one in dying.parts.database.documents("operations")]
    assert "REJECTED" not in ended


async def test_the_next_death_counts_anew(dying: Dying) -> None:
    await dying.found_dead(dying.infers[0])
    document = dying.parts.database.collections["jobs"][JOB]
    again = {"state": JobState.LOADED, "host_id": HOST, "recovery": None}
    dying.parts.database.write("jobs", {**document, **again})
    await dying.found_dead(dying.infers[1])
    job = await dying.job()
    assert (job.state, job.restarts, job.recovery) == (JobState.FAILED, 1, None)


async def test_a_job_that_is_found_down_between_read_and_write_is_counted_once(
    dying: Dying, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write says whether the job was LOADED, not what was read before it."""
    apply = dying.parts.store.jobs.apply

    async def apply_after_the_inventory(effects: list[JobEffect]) -> int:
        await dying.look()
        return await apply(effects)

    monkeypatch.setattr(dying.parts.store.jobs, "apply", apply_after_the_inventory)
    await dying.found_dead(dying.infers[0])
    job = await dying.job()
    assert (job.state, job.restarts) == (JobState.FAILED, 1)
    assert job.recovery is not None
    assert job.recovery.key == job.version - 1
