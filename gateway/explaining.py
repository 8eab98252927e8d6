"""Reads what it takes to say why an operation waits: all of it at about the same moment."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median

from gateway.reading import BoundedReads
from gateway.views import operation_view
from modelyard.contract.capacity.footprints import NOTHING_LEARNED, Learned
from modelyard.contract.catalog.entries import ModelSpec
from modelyard.contract.errors import SlowQueryError, StoreUnavailableError
from modelyard.contract.states import JobState, OperationState, Verb
from modelyard.contract.views import DryRun, Explanation, OperationView
from modelyard.process.tasks import together
from modelyard.scheduling.explaining import (
    explain,
    explain_in_line,
    explain_request,
    waits_in_line,
)
from modelyard.scheduling.ordering import CatalogEntries
from modelyard.scheduling.placement import PLACEMENT_NOTE, LearnedOf, PlacementPolicy
from modelyard.scheduling.planning import may_take_capacity
from modelyard.scheduling.prospects import MOST_HOSTS, Facts
from modelyard.scheduling.reading import entries_of, urgent_jobs
from modelyard.store import Store
from modelyard.store.capacity.footprints import learned_of
from modelyard.store.jobs import LINE_HEAD
from modelyard.store.leases import DISPATCHER
from modelyard.store.records import HostRecord, JobLine, JobRecord, NewOperation, OperationRecord

MOST_HOLDING = 100
"""Jobs on these hosts of which it is read what they do."""
MOST_LATELY = 500
"""Operations of the fleet from which it is known how long TEMPs take."""
LATELY = 20
"""Operations of the job from which it is known how long they take."""
_TRIES = 3
_BEHIND_ALL = (1 << 63) - 1
"""The position of an operation that is not in line, behind all that are."""


async def explanation_of(store: Store, operation_id: str) -> Explanation | None:
    """Return why an operation has not started; None if it is unknown.

    Raises `StoreUnavailableError`.
    """
    operation = await store.operation_queries.get(operation_id)
    if operation is None or operation.deleted:
        return None
    in_line = operation.state is OperationState.QUEUED and operation.line is not None
    if operation.job_id is None or not in_line:
        return explain(operation)
    place = await _place_of(store, operation, operation.job_id)
    return explain_in_line(await _facts(store, place, await store.time()))


async def operation_views(
    reading: BoundedReads, store: Store, records: Sequence[OperationRecord]
) -> tuple[OperationView, ...]:
    """Return operations as clients see them, with what each one that is queued waits for.

    The scheduler looks at the first operations of each job and records what they wait for. What the
    others wait for is in the record of their job; it is read here, and nothing is read if none of
    them waits so. Raises `StoreUnavailableError`.
    """
    behind = [one for one in records if _is_behind(one)]
    jobs = sorted({one.job_id for one in behind if one.job_id is not None})
    heads = await reading.ask(lambda: store.jobs.heads_of_lines(jobs)) if jobs else {}
    waits = {one.operation_id: waits_in_line(one, heads.get(one.job_id or "")) for one in behind}
    return tuple(
        view
        if not (ahead := waits.get(view.operation_id))
        else view.model_copy(update={"waiting_for": ahead})
        for view in map(operation_view, records)
    )


def _is_behind(operation: OperationRecord) -> bool:
    in_line = operation.state is OperationState.QUEUED and operation.line is not None
    return in_line and operation.not_before is None and not operation.waiting_for


async def explanation_of_request(store: Store, new: NewOperation) -> DryRun:
    """Return what would become of a valid request that is not made.

    Nothing is written. Raises `StoreUnavailableError`.
    """
    if new.job_id is None or new.verb is None:
        raise ValueError("a valid request names a job and a verb")
    now = await store.time()
    accepted = new.model_copy(update={"accepted": (now, 0)}).queued(_BEHIND_ALL)
    operation = accepted.model_copy(update={"input_json": None})
    place = await _place_behind_all(store, operation, new.job_id)
    return explain_request(new.verb, await _facts(store, place, now, asked=True))


@dataclass(frozen=True, slots=True)
class _Place:
    """An operation in its job's line, of which the first ones are known."""

    operation: OperationRecord
    line: JobLine
    beyond: int = 0
    """Operations between those and itself."""


async def _place_of(store: Store, operation: OperationRecord, job_id: str) -> _Place:
    """Return an operation in its line, as it is there."""
    line = await _line(store, job_id)
    for there in line.operations:
        if there.operation_id == operation.operation_id:
            return _Place(there, line)
    if len(line.operations) < LINE_HEAD:  # it was in line a moment ago
        now = await store.operation_queries.get(operation.operation_id)
        return _Place(now or operation, _with(line, [operation]))
    before = await store.operation_queries.open_of_job(job_id, before=operation.line)
    return _Place(operation, _with(line, [operation]), max(0, before - len(line.operations)))


async def _place_behind_all(store: Store, operation: OperationRecord, job_id: str) -> _Place:
    """Return an operation behind all of its job's that are open, taken in or not."""
    line, not_in_line = await together(
        _line(store, job_id), store.operation_queries.not_in_line(job_id, limit=LINE_HEAD)
    )
    ahead = len(line.operations) + len(not_in_line)
    if ahead < LINE_HEAD:
        # One that is being taken in may have been read twice.
        known = {one.operation_id for one in line.operations}
        late = [one for one in not_in_line if one.operation_id not in known]
        return _Place(operation, _with(line, [*late, operation]))
    count = await store.operation_queries.open_of_job(job_id)
    return _Place(operation, _with(line, [operation]), max(1, count - len(line.operations)))


async def _line(store: Store, job_id: str) -> JobLine:
    """Return a job with the head of its line; if nobody has named the job yet, as a new one."""
    for _ in range(_TRIES):
        read = await store.jobs.lines([job_id])
        if read.lines:
            return read.lines[0]
        if not read.moved:
            return JobLine(job=JobRecord(job_id=job_id), operations=())
    raise StoreUnavailableError(f"Job {job_id} changed each time that it was read.")


def _with(line: JobLine, more: Iterable[OperationRecord]) -> JobLine:
    return line.model_copy(update={"operations": (*line.operations, *more)})


async def _facts(store: Store, place: _Place, now: datetime, *, asked: bool = False) -> Facts:
    """Return what is known of an operation; of more than `MOST_HOSTS` only the first ones.

    To read many hosts and to plan for them would keep the gateway from all else for seconds.
    `asked`: this is a dry run.
    """
    operation, line = place.operation, place.line
    # A model that is loaded on demand takes capacity too.
    takes_capacity = may_take_capacity(line) or line.job.state is JobState.CREATED
    here = [line.job.host_id] if line.job.host_id else []
    hosts, urgent, policy = await together(
        store.hosts.all(None if takes_capacity else here, most=MOST_HOSTS + 1),
        _urgent(store, besides=line.job.job_id, wanted=takes_capacity),
        _policy(store),
    )
    more_hosts = len(hosts) > MOST_HOSTS
    if more_hosts:
        hosts, urgent = await store.hosts.all(here) if here else hosts[:MOST_HOSTS], ()
    lines = [line, *urgent]
    holding, catalog, (more_urgent, took_s) = await together(
        _holding(store, hosts, line),
        entries_of(store, lines),
        together(_more_urgent(store, operation, line, hosts), _took_s(store, line.job.job_id)),
    )
    return Facts(
        operation,
        line,
        now,
        beyond=place.beyond,
        urgent=urgent,
        catalog=catalog,
        learned=await _learned(store, catalog, lines),
        hosts=hosts,
        more_hosts=more_hosts,
        asked=asked,
        policy=policy,
        more_urgent=more_urgent,
        holding=holding,
        took_s=took_s,
        temps_took_s=await _temps_took_s(store, holding),
    )


async def _urgent(store: Store, *, besides: str, wanted: bool) -> tuple[JobLine, ...]:
    """Return the jobs that join a pass which gives capacity away, because they wait for some."""
    if not wanted:
        return ()
    return (await store.jobs.lines(await urgent_jobs(store, besides=[besides]))).lines


async def _policy(store: Store) -> PlacementPolicy:
    noted = (await store.leases.notes(DISPATCHER)).get(PLACEMENT_NOTE)
    return PlacementPolicy(noted) if noted in set(PlacementPolicy) else PlacementPolicy.BINPACK


async def _more_urgent(
    store: Store, operation: OperationRecord, line: JobLine, hosts: Sequence[HostRecord]
) -> int:
    if operation.places:
        return await store.operation_queries.more_urgent(operation)
    here = next((one for one in hosts if one.host_id == line.job.host_id), None)
    if operation.verb is not Verb.DEPLOY_LOAD or here is None:
        return 0
    return await store.operation_queries.more_urgent(operation, loads_of=here.held_by)


async def _learned(store: Store, catalog: CatalogEntries, lines: Sequence[JobLine]) -> LearnedOf:
    """Return what tells what was learned of the models that may be placed or loaded."""
    of_jobs = {line.job.spec.name for line in lines if line.job.spec is not None}
    found = await store.footprints.of_models(sorted({*catalog.models, *of_jobs}))
    known = learned_of(found)

    def of(spec: ModelSpec) -> Learned:
        return known.get((spec.name, spec.image), NOTHING_LEARNED)

    return of


async def _holding(store: Store, hosts: Sequence[HostRecord], line: JobLine) -> dict[str, JobLine]:
    """Return jobs that hold something on the hosts that are looked at.

    First those whose models are in memory, which may make room.
    """
    here = line.job.host_id
    looked_at = [one for one in hosts if here is None or one.host_id == here][:MOST_HOSTS]
    held = [it for host in looked_at for it in host.reservations]
    held.sort(key=lambda it: it.resident is None)
    read = await store.jobs.lines([it.job_id for it in held[:MOST_HOLDING]])
    return {one.job.job_id: one for one in read.lines}


async def _temps_took_s(store: Store, holding: Mapping[str, JobLine]) -> dict[str, float]:
    """Return the seconds that TEMPs took lately, by model, for the models of those that run."""
    running = [one for line in holding.values() for one in line.operations if one.verb is Verb.TEMP]
    models = {one.model for one in running if one.model is not None}
    if not models:
        return {}
    return await store.operation_queries.took_lately(Verb.TEMP, models, most=MOST_LATELY)


async def _took_s(store: Store, job_id: str) -> dict[Verb, float]:
    """Return the seconds that a job's operations took lately; nothing if MongoDB takes too long."""
    try:
        page = await store.operation_queries.page({"job_id": job_id}, after=None, limit=LATELY)
    except SlowQueryError:
        return {}
    found: dict[Verb, list[float]] = defaultdict(list)
    for one in page.items:
        done = one.state is OperationState.SUCCEEDED and one.verb is not None
        if done and one.verb and one.started_at and one.finished_at:
            found[one.verb].append((one.finished_at - one.started_at).total_seconds())
    return {verb: median(seconds) for verb, seconds in found.items()}
