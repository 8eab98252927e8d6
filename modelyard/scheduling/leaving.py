"""Which models may be unloaded: to make room for others, or because they are idle. Pure."""

import math
from datetime import datetime
from enum import StrEnum

from modelyard.contract.states import JobState, Verb
from modelyard.store.records import JobLine, JobRecord

TAKES_OUT = (Verb.DEPLOY_UNLOAD, Verb.TERMINATE)
"""Verbs that take a model out of memory."""


class Stays(StrEnum):
    """Why a model stays in memory; the text is for people."""

    BY_HAND = "its model is not loaded on demand, so nothing would bring it back"
    PINNED = "its model is pinned"
    MOVING = "it is being moved or restored"
    YOUNG = "it was loaded a moment ago (min_resident_s)"
    IN_USE = "inferences run on it or wait for it"
    CHANGING = "an operation is changing it"


def is_leaving(line: JobLine) -> bool:
    """Tell whether the first operation in line takes the model out of memory."""
    return bool(line.operations) and line.operations[0].verb in TAKES_OUT


def why_it_stays(line: JobLine, now: datetime) -> Stays | None:
    """Return why a model may not be unloaded for another one now; None if it may.

    `IN_USE` holds for a bounded time only. `now` is a time by the database's clock.
    """
    job, spec = line.job, line.job.spec
    if spec is None or not spec.residency.on_demand:
        return Stays.BY_HAND
    if spec.residency.pinned:
        return Stays.PINNED
    if job.state is not JobState.LOADED or job.move is not None or job.recovery is not None:
        return Stays.MOVING if job.move or job.recovery else Stays.CHANGING
    if _resident_s(job, now, math.inf) < spec.residency.min_resident_s:
        return Stays.YOUNG
    if line.operations:
        # What waits behind inferences does not change the model yet; an UNLOAD goes before it.
        return Stays.IN_USE if line.operations[0].shared else Stays.CHANGING
    return None


def is_idle(job: JobRecord, now: datetime, *, unused_s: float) -> bool:
    """Tell whether a loaded model, which nothing in line needs, is unloaded because it is idle.

    `unused_s` are the seconds since its last operation. A pinned model is never idle, whatever else
    its entry says.
    """
    if job.spec is None or job.move is not None or job.recovery is not None:
        return False
    residency = job.spec.residency
    if residency.idle_unload_s is None or residency.pinned:
        return False
    resident_s = _resident_s(job, now, 0.0)
    if resident_s < residency.min_resident_s:
        return False
    return min(unused_s, resident_s) >= residency.idle_unload_s


def _resident_s(job: JobRecord, now: datetime, unknown_s: float) -> float:
    return (now - job.loaded_at).total_seconds() if job.loaded_at else unknown_s
