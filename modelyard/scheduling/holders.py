"""Who holds what a host lacks, and when enough of it comes back by itself. Pure."""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from enum import StrEnum

from modelyard.contract.capacity.ledger import Allocation
from modelyard.contract.capacity.offers import MILLI
from modelyard.contract.states import OperationState, Verb
from modelyard.contract.views import HolderView
from modelyard.scheduling.fitting import Lacks
from modelyard.scheduling.leaving import why_it_stays
from modelyard.store.records import HostRecord, JobLine

MOST_HOLDERS = 20


class HeldUntil(StrEnum):
    """Why what a container holds does not make room; the text is for people."""

    END = "it ends by itself: a TEMP"
    TERMINATE = "its container holds this until its TERMINATE"


def holders_of(
    host: HostRecord,
    lacks: Lacks,
    lines: Mapping[str, JobLine],
    now: datetime,
    *,
    besides: str,
    devices: Collection[str] = (),
) -> tuple[HolderView, ...]:
    """Return who holds what there is too little of on a host, at most 20, the largest first.

    `lines` are those of the jobs there that are known: of another one with a model in memory it is
    not known whether it makes room, so it is left out. `besides` is the job that needs the place;
    with `devices` only these can help.
    """
    held = [(_amount(one, lacks, devices), one) for one in host.reservations]
    there = [(amount, one) for amount, one in held if amount and one.job_id != besides]
    there.sort(key=lambda it: (-it[0], it[1].job_id))
    views = (_holder(one, lacks, lines.get(one.job_id), now) for _, one in there)
    return tuple([view for view in views if view is not None][:MOST_HOLDERS])


def seconds_left(line: JobLine, now: datetime, took_s: Mapping[str, float]) -> float | None:
    """Return in how many seconds a job that runs a TEMP ends; None if that is not known.

    `took_s` is by model what its TEMPs took lately. One that takes longer, or whose model is not
    among them, ends at its `timeout_s` at the latest.
    """
    runs = next((one for one in line.operations if one.state is OperationState.RUNNING), None)
    if runs is None or runs.verb is not Verb.TEMP or runs.started_at is None:
        return None
    ran_s = max(0.0, (now - runs.started_at).total_seconds())
    known = (took_s.get(runs.model or ""), runs.timeout_s)
    return next((whole - ran_s for whole in known if whole is not None and whole > ran_s), None)


def seconds_until(
    room: Callable[[HostRecord], bool], hosts: Sequence[HostRecord], ends_s: Mapping[str, float]
) -> float | None:
    """Return in how many seconds some host has room; None if no end that is known makes any.

    `ends_s` says of jobs that end by themselves in how many seconds they do.
    """
    there = {host.host_id: host for host in hosts}
    ends = sorted(
        (ends_s[held.job_id], host.host_id, held.job_id)
        for host in hosts
        for held in host.reservations
        if held.temporary and held.job_id in ends_s
    )
    for seconds, host_id, job_id in ends:
        host = there[host_id] = there[host_id].without({job_id})
        if room(host):
            return seconds
    return None


def _amount(held: Allocation, lacks: Lacks, devices: Collection[str]) -> int:
    match lacks:
        case Lacks.SLOTS:
            return held.slots
        case Lacks.CPUS:
            return held.millicpus
        case Lacks.MEMORY:
            return held.all_memory
        case Lacks.DEVICES:
            there = held.resident.devices if held.resident else {}
            return sum(size for uuid, size in there.items() if not devices or uuid in devices)


def _holder(
    held: Allocation, lacks: Lacks, line: JobLine | None, now: datetime
) -> HolderView | None:
    job_id, model = held.job_id, line.job.spec.name if line and line.job.spec else None
    if held.temporary or not _unload_helps(held, lacks):
        stays = HeldUntil.END if held.temporary else HeldUntil.TERMINATE
        return HolderView(
            job_id=job_id,
            model=model,
            frees={
                **(held.resident.devices if held.resident else {}),
                **({"memory": held.all_memory} if held.all_memory else {}),
            },
            cpus=held.millicpus / MILLI,
            slots=held.slots,
            stays=stays,
        )
    if line is None or held.resident is None:
        return None
    memory = {"memory": held.resident.memory} if held.resident.memory else {}
    frees = {**held.resident.devices, **memory}
    return HolderView(job_id=job_id, model=model, frees=frees, stays=why_it_stays(line, now))


def _unload_helps(held: Allocation, lacks: Lacks) -> bool:
    """Tell whether a job gives back what is lacking when its model leaves memory."""
    if lacks is Lacks.DEVICES:
        return True
    return lacks is Lacks.MEMORY and held.resident is not None and held.resident.memory > 0
