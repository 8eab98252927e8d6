"""Writes reports to the record, and only then publishes them as events.

Reports carry `(operation_id, epoch, seq)` and the full state, so reordering and duplicates do not
matter. The writes come in the order result, job, reservation, operation, event. After a crash
between any two of them the report is redelivered; each write finds what is done and continues from
there. The operation is written after its job, so that a client that sees the operation ended also
sees the job in the state that the operation left.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

from dispatcher.events import EventLog, job_event, report_event
from dispatcher.maintenance.reconciler import restoration_again, restoration_of
from dispatcher.maintenance.retries import Retries
from dispatcher.reports.fencing import CurrentReport, Fencing, StaleReport, fence
from dispatcher.scheduling.memory import Memory
from dispatcher.scheduling.scheduler import Scheduler
from modelyard.contract.capacity.needs import holds_while_loaded
from modelyard.contract.catalog.entries import ModelSpec
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.messages import OperationReport
from modelyard.contract.states import JobState, OperationState, Verb
from modelyard.process.crash_points import crash_point
from modelyard.store import Store
from modelyard.store.jobs import JobEffect, PendingRestoration
from modelyard.store.operation_writes import Receipt, ResultPlace, now_for_people
from modelyard.store.records import JobRecord, LastReport


class ReportWriter:
    """Writes the reports that are not fenced off."""

    def __init__(
        self,
        store: Store,
        event_log: EventLog,
        scheduler: Scheduler,
        retries: Retries,
        fencing: Fencing,
        memory: Memory,
    ) -> None:
        self._store = store
        self._event_log = event_log
        self._scheduler = scheduler
        self._lines = memory.lines
        self._fleet = memory.fleet
        self._footprints = memory.footprints
        self._retries = retries
        self._fencing = fencing

    async def write(
        self, reports: Sequence[tuple[str, OperationReport]], boots: Mapping[str, LastReport]
    ) -> None:
        """Write the reports that are not fenced off; raises `StoreUnavailableError`.

        `boots` has each reporting host's incarnation and the number of its last message.
        """
        if not reports:
            return
        accepted: list[CurrentReport] = []
        stale: list[StaleReport] = []
        unclear: list[tuple[str, OperationReport]] = []
        for host_id, report in reports:
            current = self._from_memory(host_id, report)
            if current is not None:
                accepted.append(replace(current, told=boots.get(host_id)))
            else:
                unclear.append((host_id, report))
        known = (
            await self._store.operation_queries.get_many([one.operation_id for _, one in unclear])
            if unclear
            else {}
        )
        # What is in memory did not explain these reports, so it may be outdated.
        self._lines.forget(report.job_id for _, report in unclear)
        for host_id, report in unclear:
            verdict = fence(host_id, report, known.get(report.operation_id))
            if isinstance(verdict, CurrentReport):
                accepted.append(replace(verdict, told=boots.get(host_id)))
            else:
                stale.append(StaleReport(host_id, report, verdict))
        await self._fencing.reject(stale, boots)
        stored = await self._stored(accepted)
        accepted = [_with_result(one, stored) for one in accepted]
        again = [one for one in accepted if self._is_retried(one)]
        for one in again:
            await self._retry(one)
        await self._write([one for one in accepted if one not in again], stored)

    def _from_memory(self, host_id: str, report: OperationReport) -> CurrentReport | None:
        """Return a report as current if the operation is in memory, and nothing has gone wrong.

        Only the record says that a report is stale, and whether an attempt that failed is retried.
        """
        if report.state.terminal and report.state is not OperationState.SUCCEEDED:
            return None
        operation = self._lines.operation(report.job_id, report.operation_id)
        verdict = fence(host_id, report, operation)
        return verdict if isinstance(verdict, CurrentReport) and verdict.new else None

    def _remember(self, accepted: Sequence[CurrentReport], receipts: Mapping[str, Receipt]) -> None:
        for one in accepted:
            report = one.report
            if report.state.terminal:
                self._lines.remove(report.job_id, report.operation_id)
            elif one.new:
                self._lines.replace(
                    one.operation.model_copy(
                        update={
                            "state": report.state,
                            "seq": report.seq,
                            "phase": report.phase,
                            "progress": report.progress,
                            "started_at": receipts[report.operation_id].started_at,
                            "container_id": report.container_id or one.operation.container_id,
                        }
                    )
                )

    async def _write(
        self, accepted: list[CurrentReport], stored: Mapping[str, ResultPlace]
    ) -> None:
        if not accepted:
            return
        results = {**stored, **await self._keep_results(accepted)}
        crash_point("dispatcher.recorder.after_results")
        told_of_jobs = await self._apply_to_jobs(accepted)
        accepted = await self._not_overtaken(accepted, told_of_jobs)
        await self._let_go(accepted)
        measured = await self._measured(accepted)
        new = [one.report for one in accepted if one.new]
        receipts = _receipts_of(accepted)
        try:
            found = await self._store.operations.apply(new, results, receipts)
        except BaseException:
            self._lines.forget(one.report.job_id for one in accepted)
            raise
        crash_point("dispatcher.recorder.after_operations")
        if found < len(new):
            self._lines.forget(one.report.job_id for one in accepted)
            accepted = await self._still_valid(accepted)
        self._remember(accepted, receipts)
        await self._learn(measured, accepted)
        ended = [one for one in accepted if one.report.state.terminal]
        self._scheduler.wake(one.report.job_id for one in ended)
        self._event_log.note(
            [
                report_event(
                    one.report,
                    one.operation,
                    receipts.get(one.report.operation_id) if one.new else None,
                    results.get(one.report.operation_id) if one.new else None,
                )
                for one in accepted
            ]
            + [
                job_event(one.report, one.report.job_state, one.operation.host_id)
                for one in accepted
                if one.report.job_state is not None and one.report.job_id in told_of_jobs
            ]
        )

    def _is_retried(self, one: CurrentReport) -> bool:
        """Tell whether a failed attempt is retried.

        A verb that works on an existing container is not retried if the report says that this
        container is gone (the report has a job state then).
        """
        report = one.report
        if report.state is not OperationState.FAILED or report.error is None or not one.new:
            return False
        return (one.operation.places or report.job_state is None) and self._retries.should_retry(
            one.operation, report.error
        )

    async def _retry(self, one: CurrentReport) -> None:
        if one.report.error is not None:
            seen = one.operation.model_copy(update={"seq": one.report.seq})
            await self._retries.failed(seen, one.report.error)

    async def _stored(self, accepted: Sequence[CurrentReport]) -> dict[str, ResultPlace]:
        """Return where the results are that came in pieces, if all of theirs are there."""
        places: dict[str, ResultPlace] = {}
        for report in (one.report for one in accepted if one.new):
            if report.result_stored is not None:
                place = await self._store.results.complete(
                    report.operation_id, report.epoch, report.result_stored
                )
                if place is not None:
                    places[report.operation_id] = place
        return places

    async def _keep_results(self, accepted: Sequence[CurrentReport]) -> Mapping[str, ResultPlace]:
        places: dict[str, ResultPlace] = {}
        for one in accepted:
            report = one.report
            result = report.result_content if report.result_json is None else report.result_json
            if result is not None and one.new:
                places[report.operation_id] = await self._store.results.put(
                    report.operation_id, report.epoch, result
                )
        return places

    async def _apply_to_jobs(self, accepted: Sequence[CurrentReport]) -> set[str]:
        """Write the job states of the reports; return the jobs that now are in these states."""
        telling = [one for one in accepted if one.report.job_state is not None]
        if not telling:
            return set()
        down = await self._down(telling)
        effects = [
            _effect(one, down.get(one.report.job_id) if _found_down(one) else None)
            for one in telling
        ]
        before = {one.job_id: self._lines.job(one.job_id) for one in effects}
        applied = await self._store.jobs.apply(effects)
        crash_point("dispatcher.recorder.after_jobs")
        if applied == len(effects) == len(before):
            for effect in effects:
                job = before[effect.job_id]
                after = effect.applied_to(job) if job is not None else None
                self._lines.replace_job(effect.job_id, before=job, after=after)
            # Each job is now as its report says, and has given up the generation if it ended.
            told, gone = telling, telling
        else:
            self._lines.forget(before)
            told, gone = await self._compared(telling)
        freed: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for one in gone:
            if not (one.report.job_state or JobState.NONE).live:
                freed[one.operation.host_id or ""].append(
                    (one.report.job_id, one.report.generation)
                )
        if freed:
            await self._store.hosts.release(freed)
            crash_point("dispatcher.recorder.after_release")
            self._scheduler.wake_waiting()
        return {one.report.job_id for one in told}

    async def _compared(
        self, telling: Sequence[CurrentReport]
    ) -> tuple[list[CurrentReport], list[CurrentReport]]:
        """Return the reports whose jobs are in the state that they tell of, whoever wrote it.

        And those whose jobs have given up the generation: only then its reservation is freed.
        """
        jobs = await self._store.jobs.get_many([one.report.job_id for one in telling])
        told: list[CurrentReport] = []
        gone: list[CurrentReport] = []
        for one in telling:
            job = jobs.get(one.report.job_id)
            if job is None or job.host_id is None or job.generation > one.report.generation:
                gone.append(one)
            if job is not None and (job.state, job.generation) == (
                one.report.job_state,
                one.report.generation,
            ):
                told.append(one)
        return told, gone

    async def _not_overtaken(
        self, accepted: Sequence[CurrentReport], told_of_jobs: Collection[str]
    ) -> list[CurrentReport]:
        """Return the reports without successes that came too late for their jobs.

        Such a job was taken off the host, and whoever does that queues the operation again, or
        ends it. As SUCCEEDED it would leave a job without the container that it created.
        """
        late = [
            one for one in accepted if _needs_its_job(one) and one.report.job_id not in told_of_jobs
        ]
        await self._fencing.record(
            [StaleReport(one.operation.host_id or "", one.report, "overtaken") for one in late]
        )
        return [one for one in accepted if one not in late]

    async def _let_go(self, accepted: Sequence[CurrentReport]) -> None:
        """Free what models held that are not in memory any more.

        An UNLOAD has succeeded, or a LOAD has ended and its container was stopped, or nothing of it
        had begun. These operations are still open in the record, so no later LOAD of their jobs has
        begun. Of what no report tells the outcome, `ReservationLeaks` takes care.
        """
        over = {
            one.report.job_id: one
            for one in accepted
            if one.new and one.operation.verb in _MEMORY_VERBS and _is_out(one)
        }
        if not over:
            return
        for job in (await self._store.jobs.get_many(list(over))).values():
            one = over[job.job_id]
            unloaded = job.state is JobState.CREATED and job.generation == one.report.generation
            if not unloaded or job.spec is None or not holds_while_loaded(job.spec):
                continue
            if await self._store.hosts.let_go(
                one.operation.host_id or "", job.job_id, job.generation, before=job.version
            ):
                crash_point("dispatcher.recorder.after_let_go")
                self._scheduler.wake_waiting()

    async def _measured(self, accepted: Sequence[CurrentReport]) -> Mapping[str, ModelSpec]:
        """Return the models of the operations whose reports have a footprint that counts.

        Only one of an attempt that succeeded does, and only once.
        """
        telling = {
            one.report.operation_id: one.report.job_id
            for one in accepted
            if one.new
            and one.report.footprint is not None
            and one.report.state is OperationState.SUCCEEDED
        }
        if not telling:
            return {}
        jobs = await self._store.jobs.get_many(sorted(set(telling.values())))
        return {
            operation_id: job.spec
            for operation_id, job_id in telling.items()
            if (job := jobs.get(job_id)) is not None and job.spec is not None
        }

    async def _learn(
        self, measured: Mapping[str, ModelSpec], accepted: Sequence[CurrentReport]
    ) -> None:
        """Note the footprints of reports that are recorded now; a crash before it loses them."""
        for one in accepted:
            spec, found = measured.get(one.report.operation_id), one.report.footprint
            if spec is None or found is None:
                continue
            host = (await self._fleet.hosts()).get(one.operation.host_id or "")
            new_load = found.load == one.report.operation_id
            await self._footprints.learn(spec, host, found, new_load=new_load)

    async def _down(self, telling: Sequence[CurrentReport]) -> Mapping[str, JobRecord]:
        """Return the jobs that these reports found down.

        An inference found the job down, or the load of an earlier restoration did.
        """
        down = {one.report.job_id for one in telling if _found_down(one)}
        if not down:
            return {}
        return {job.job_id: job for job in await self._store.jobs.get_with_age(sorted(down))}

    async def _still_valid(self, accepted: Sequence[CurrentReport]) -> list[CurrentReport]:
        """Return the reports that are in the record now: only these may be published as events.

        Needed if a write matched fewer operations than expected, because another writer was first.
        """
        now = await self._store.operation_queries.get_many(
            [one.report.operation_id for one in accepted]
        )
        valid: list[CurrentReport] = []
        overtaken: list[StaleReport] = []
        for one in accepted:
            record = now.get(one.report.operation_id)
            written = record is not None and (record.epoch, record.state) == (
                one.report.epoch,
                one.report.state,
            )
            if written and record is not None and record.seq >= one.report.seq:
                # Another process may have written the same report, with other times.
                valid.append(replace(one, operation=record))
            elif one.new:
                overtaken.append(StaleReport(one.operation.host_id or "", one.report, "overtaken"))
        await self._fencing.record(overtaken)
        return valid


_MEMORY_VERBS = frozenset({Verb.DEPLOY_LOAD, Verb.DEPLOY_UNLOAD})
"""The verbs after which a model may be out of memory while its container stays."""


def _receipts_of(accepted: Sequence[CurrentReport]) -> dict[str, Receipt]:
    """Return when the attempts of these reports began, and ended if they have.

    The record and the event have the same times. They are by this process's clock, which no
    decision uses, but never before those that are recorded of the operation.
    """
    now = now_for_people()
    receipts: dict[str, Receipt] = {}
    for one in accepted:
        if one.new:
            given_at = one.operation.dispatched_at or now
            began = max(
                given_at, now - timedelta(milliseconds=int((one.report.ran_s or 0.0) * 1_000))
            )
            started_at = one.operation.started_at or began
            told = one.told if one.operation.aside else None
            receipts[one.report.operation_id] = Receipt(started_at, max(now, started_at), told)
    return receipts


def _found_down(one: CurrentReport) -> bool:
    if one.report.job_state is not JobState.FAILED or not one.new:
        return False
    verb, ours = one.operation.verb, one.operation.source == "system"
    return verb is Verb.INFER or (ours and verb is Verb.DEPLOY_LOAD)


def _needs_its_job(one: CurrentReport) -> bool:
    """Tell whether a report says that its operation has brought the job into a live state."""
    operation, report = one.operation, one.report
    if not one.new or operation.shared or operation.aside:
        return False
    live = report.job_state is not None and report.job_state.live
    return live and report.state is OperationState.SUCCEEDED


def _effect(one: CurrentReport, down: JobRecord | None) -> JobEffect:
    """Return what a report does to its job; `down` is the job if the report found it down."""
    report = one.report
    recovery = restoration_of(down, to=JobState.LOADED) if down is not None else None
    state = report.job_state
    return JobEffect(
        job_id=report.job_id,
        operation_id=report.operation_id,
        epoch=report.epoch,
        seq=report.seq,
        generation=report.generation,
        host_id=one.operation.host_id or "",
        state=state or JobState.NONE,
        container_id=report.container_id,
        error=report.error if state is JobState.FAILED else None,
        shared=one.operation.shared,
        coming=PendingRestoration(recovery, 1 if down.steady else down.restarts + 1)
        if recovery is not None and down is not None
        else None,
        again=restoration_again(down) if down is not None and one.operation.shared else None,
        told=one.told,
        ran_s=report.ran_s,
    )


def _with_result(one: CurrentReport, stored: Mapping[str, ResultPlace]) -> CurrentReport:
    """Return a report as a failure if its large result is not stored whole.

    Its worker reports it only once each piece is, so this is a worker's fault.
    """
    report = one.report
    if report.result_stored is None or not one.new or report.operation_id in stored:
        return one
    error = ErrorInfo.of(ErrorCode.WORKER_ERROR, "A part of the result is missing.")
    failed = {"state": OperationState.FAILED, "error": error, "result_stored": None}
    return replace(one, report=report.model_copy(update=failed))


def _is_out(one: CurrentReport) -> bool:
    """Tell whether the last report of a LOAD or UNLOAD proves that no part of a model is loaded."""
    report = one.report
    if not report.state.terminal:
        return False
    never_begun = report.ran_s is None and one.operation.failures == 0
    return report.job_state is JobState.CREATED or never_begun
