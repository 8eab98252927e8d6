"""Reports on operations in memory: recorded without reading the record first."""

import asyncio
from collections.abc import Sequence

import pytest

from dispatcher.control import ControlPublisher
from dispatcher.maintenance.retries import Retries
from dispatcher.reports.fencing import Fencing
from dispatcher.reports.report_writer import ReportWriter
from modelyard.contract.capacity.footprints import Footprint, Learned
from modelyard.contract.capacity.offers import Device, HostCapacity
from modelyard.contract.errors import ErrorCode, ErrorInfo, StoreUnavailableError
from modelyard.contract.messages import EngineFacts, HostOnline, OperationReport
from modelyard.contract.states import JobState, OperationState, Verb
from modelyard.store.capacity.footprints import FootprintRecord
from modelyard.store.jobs import JobEffect
from modelyard.store.operation_writes import DispatchClaim
from modelyard.store.records import NewOperation
from tests.fakes.broker_links import Call, Fate
from tests.support.dispatcher.parts import (
    HOST,
    INCARNATION,
    JOB,
    MODEL,
    DispatcherParts,
    new_operation,
)

RUNNING, SUCCEEDED = OperationState.RUNNING, OperationState.SUCCEEDED


class Writing:
    """A report writer, and one inference that was dispatched."""

    def __init__(self) -> None:
        self.parts = parts = DispatcherParts()
        self.one = new_operation()
        scheduler = parts.scheduler
        retries = Retries(parts.store, parts.event_log, scheduler, max_attempts=3)
        fencing = Fencing(parts.store, parts.event_log, ControlPublisher(parts.broker))
        self._writer = ReportWriter(
            parts.store, parts.event_log, scheduler, retries, fencing, parts.memory
        )

    async def begin(self) -> None:
        """Have the inference dispatched, and in memory."""
        await self.parts.begin()
        await self.parts.lines.read([JOB])
        assert await self.parts.first_pass.take([self.one]) == []

    async def report(self, *reports: OperationReport) -> None:
        """Write reports of the host."""
        await self._writer.write([(HOST, one) for one in reports], {})


def report(of: NewOperation, state: OperationState, seq: int, **fields: object) -> OperationReport:
    base = {"operation_id": of.operation_id, "epoch": 1, "job_id": JOB, "generation": 1}
    return OperationReport.model_validate({**base, "state": state, "seq": seq, **fields})


@pytest.fixture
async def writing() -> Writing:
    made = Writing()
    await made.begin()
    return made


async def test_an_inference_that_succeeds_costs_one_write_and_no_read(writing: Writing) -> None:
    parts, before = writing.parts, writing.parts.link.calls.copy()
    await writing.report(report(writing.one, SUCCEEDED, 1, result_json="1"))
    assert parts.link.calls[Call.READ] == before[Call.READ]
    assert parts.link.calls[Call.WRITE] == before[Call.WRITE] + 1
    assert (await parts.recorded(writing.one)).state is SUCCEEDED
    assert parts.lines.operation(JOB, writing.one.operation_id) is None
    assert parts.lines.line(JOB) is not None
    assert await parts.memory_is_as_the_record()
    assert await parts.told() == ["operation.dispatched", "operation.succeeded"]


async def test_so_does_one_whose_result_is_an_image(writing: Writing) -> None:
    parts, before = writing.parts, writing.parts.link.calls.copy()
    image = {"content_type": "image/png", "content": "iVBORw=="}
    await writing.report(report(writing.one, SUCCEEDED, 1, result_content=image))
    assert parts.link.calls[Call.READ] == before[Call.READ]
    assert parts.link.calls[Call.WRITE] == before[Call.WRITE] + 1
    recorded = await parts.recorded(writing.one)
    assert (recorded.result_type, recorded.result_bytes) == ("image/png", 4)
    assert await parts.memory_is_as_the_record()


async def test_what_runs_is_noted_in_memory(writing: Writing) -> None:
    await writing.report(report(writing.one, RUNNING, 1))
    there = writing.parts.lines.operation(JOB, writing.one.operation_id)
    assert there is not None
    assert (there.state, there.seq) == (RUNNING, 1)
    assert await writing.parts.memory_is_as_the_record()
    await writing.report(report(writing.one, SUCCEEDED, 2))
    assert await writing.parts.memory_is_as_the_record()


async def test_a_failure_is_judged_by_the_record(writing: Writing) -> None:
    parts, before = writing.parts, writing.parts.link.calls[Call.READ]
    error = ErrorInfo.of(ErrorCode.BAD_RESULT)
    await writing.report(report(writing.one, OperationState.FAILED, 1, error=error))
    assert parts.link.calls[Call.READ] > before
    assert (await parts.recorded(writing.one)).state is OperationState.FAILED
    assert parts.lines.operation(JOB, writing.one.operation_id) is None


async def test_a_job_that_is_read_while_a_report_ends_it_is_not_kept_as_it_was(
    writing: Writing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next inference of its line went to the container that has just died."""
    lines, link, jobs = writing.parts.lines, writing.parts.link, writing.parts.store.jobs
    apply = jobs.apply

    async def apply_while_read(effects: Sequence[JobEffect]) -> int:
        link.hold(only=2)  # by then the job and its line are read
        reading = asyncio.create_task(lines.read([JOB]))
        await link.held.wait()
        applied = await apply(effects)
        link.let_go()
        await reading
        return applied

    monkeypatch.setattr(jobs, "apply", apply_while_read)
    failed = {"error": ErrorInfo.of(ErrorCode.OOM_KILLED), "job_state": JobState.FAILED}
    await writing.report(report(writing.one, OperationState.FAILED, 1, **failed))
    (line,) = (await lines.read([JOB])).lines
    assert line.job.state is JobState.FAILED


async def test_a_job_that_two_reports_change_and_that_is_read_meanwhile_is_not_kept_as_it_was(
    writing: Writing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report of its LOAD comes again beside that of an inference which found it down."""
    parts, load = writing.parts, new_operation(Verb.DEPLOY_LOAD)
    await parts.put_in_line(load)
    claim = DispatchClaim(await parts.recorded(load), HOST, INCARNATION, 1)
    await parts.store.operations.claim([claim], token="t")
    document = parts.database.collections["jobs"][JOB]
    current = {"operation_id": load.operation_id, "epoch": 1, "seq": 0}
    parts.database.write("jobs", document | {"state": JobState.CREATED, "current": current})
    loaded = report(load, SUCCEEDED, 1, job_state=JobState.LOADED)
    await writing.report(loaded)
    await parts.lines.read([JOB])
    apply = parts.store.jobs.apply

    async def apply_while_read(effects: Sequence[JobEffect]) -> int:
        parts.link.hold(only=2)
        reading = asyncio.create_task(parts.lines.read([JOB]))
        await parts.link.held.wait()
        applied = await apply(effects)
        parts.link.let_go()
        await reading
        assert applied == len(effects) == 2
        return applied

    monkeypatch.setattr(parts.store.jobs, "apply", apply_while_read)
    failed = {"error": ErrorInfo.of(ErrorCode.OOM_KILLED), "job_state": JobState.FAILED}
    await writing.report(loaded, report(writing.one, OperationState.FAILED, 1, **failed))
    (line,) = (await parts.lines.read([JOB])).lines
    assert line.job.state is JobState.FAILED


@pytest.mark.parametrize(
    "fields",
    [{"epoch": 0}, {"generation": 2}, {"job_id": "other"}, {"seq": 1}],
    ids=["epoch", "generation", "job", "repeated"],
)
async def test_what_memory_does_not_explain_is_judged_by_the_record(
    writing: Writing, fields: dict[str, object]
) -> None:
    await writing.report(report(writing.one, RUNNING, 1))
    before = writing.parts.database.documents("operations")
    await writing.report(report(writing.one, RUNNING, 2).model_copy(update=fields))
    assert writing.parts.database.documents("operations") == before


@pytest.mark.parametrize("state", [OperationState.QUEUED, OperationState.DISPATCHED])
async def test_a_worker_puts_no_operation_back_into_the_queue(
    writing: Writing, state: OperationState
) -> None:
    """Else it would run for ever, past its deadline and with no failure that is counted."""
    parts = writing.parts
    await writing.report(report(writing.one, RUNNING, 1))
    before = parts.database.documents("operations")
    await writing.report(report(writing.one, state, 2))
    assert parts.database.documents("operations") == before
    host = await parts.store.hosts.get(HOST)
    assert host is not None
    assert host.fenced_off == {"illegal": 1}
    await writing.report(report(writing.one, SUCCEEDED, 3))
    assert (await parts.recorded(writing.one)).state is SUCCEEDED


async def test_a_report_that_another_writer_was_faster_than_changes_nothing(
    writing: Writing,
) -> None:
    parts, key = writing.parts, writing.one.operation_id
    document = parts.database.collections["operations"][key]
    parts.database.write("operations", document | {"state": "QUEUED", "seq": 0})
    before = parts.database.documents("operations")
    await writing.report(report(writing.one, SUCCEEDED, 1))
    assert parts.database.documents("operations") == before
    assert parts.lines.line(JOB) is None
    assert await parts.told() == ["operation.dispatched"]


@pytest.mark.parametrize("fate", ["lost_before", "lost_after"])
async def test_a_write_that_fails_is_done_again(writing: Writing, fate: Fate) -> None:
    parts = writing.parts
    parts.link.fates.append(fate)
    with pytest.raises(StoreUnavailableError):
        await writing.report(report(writing.one, SUCCEEDED, 1))
    assert parts.lines.line(JOB) is None
    await writing.report(report(writing.one, SUCCEEDED, 1))
    assert (await parts.recorded(writing.one)).state is SUCCEEDED
    assert await parts.told() == ["operation.dispatched", "operation.succeeded"]


async def footprints(writing: Writing) -> list[FootprintRecord]:
    return await writing.parts.store.footprints.all()


LOAD_ID = "01930a7c-5d2e-7c11-9d7f-3a1f0c5e9b42"
TAKES = Footprint(load=LOAD_ID, memory=100)


async def test_what_a_model_was_measured_to_take_is_learned_once(writing: Writing) -> None:
    one = report(writing.one, SUCCEEDED, 2, footprint=TAKES)
    await writing.report(one)
    (found,) = await footprints(writing)
    assert (found.model, found.image, found.device, found.memory) == ("m", "m", "", 100)
    assert found.loads == 0  # an inference told it, and the load was counted or lost
    learned = await writing.parts.footprints.learned()
    assert learned(MODEL).memory == 100
    # It comes again, as after a crash before it was settled.
    await writing.report(one)
    await writing.report(one.model_copy(update={"footprint": Footprint(load=LOAD_ID, memory=500)}))
    assert await footprints(writing) == [found]


async def test_a_load_that_was_measured_is_counted(writing: Writing) -> None:
    mine = Footprint(load=writing.one.operation_id, memory=100)
    await writing.report(report(writing.one, SUCCEEDED, 2, footprint=mine))
    (found,) = await footprints(writing)
    assert found.loads == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"epoch": 2},
        {"generation": 2},
        {"job_id": "other"},
        {"state": RUNNING},
        {"state": OperationState.FAILED, "error": ErrorInfo.of(ErrorCode.LOAD_FAILED)},
    ],
    ids=["epoch", "generation", "job", "running", "failed"],
)
async def test_what_is_late_or_did_not_succeed_teaches_nothing(
    writing: Writing, fields: dict[str, object]
) -> None:
    one = report(writing.one, SUCCEEDED, 2, footprint=TAKES).model_copy(update=fields)
    await writing.report(one)
    assert await footprints(writing) == []


async def test_a_report_that_was_overtaken_teaches_nothing(writing: Writing) -> None:
    parts, key = writing.parts, writing.one.operation_id
    document = parts.database.collections["operations"][key]
    parts.database.write("operations", document | {"state": "QUEUED", "seq": 0, "epoch": 2})
    await writing.report(report(writing.one, SUCCEEDED, 2, footprint=TAKES))
    assert await footprints(writing) == []


async def test_devices_are_learned_by_their_kind_and_the_one_that_took_most_counts(
    writing: Writing,
) -> None:
    devices = tuple(
        Device(uuid=uuid, index=index, model=kind, memory=1_000)
        for index, (uuid, kind) in enumerate((("a", "X"), ("b", "X"), ("c", "Y"), ("d", "Y")))
    )
    engine = EngineFacts(version="1", api_version="1")
    offer = HostCapacity(cpus=1.0, memory=1_000, devices=devices)
    online = HostOnline(slots=4, engine=engine, capacity=offer)
    await writing.parts.store.hosts.come_online(HOST, "boot-2", online)
    taken = Footprint(load=LOAD_ID, memory=7, devices={"a": 10, "b": 30, "c": 20, "gone": 99})
    await writing.report(report(writing.one, SUCCEEDED, 2, footprint=taken))
    learned = await writing.parts.footprints.learned()
    assert learned(MODEL) == Learned(7, (("X", 30), ("Y", 20)))
