"""Chooses the job of each inference on a model, from a reading of its jobs.

A reading costs queries, and inferences come by the thousand, so a reading is used for a while. What
it says may be outdated: a job may be about to end. This gateway avoids a job as soon as it accepts
a TERMINATE or DEPLOY_UNLOAD for it; those that another gateway accepts are in the next reading.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.availability import Availability
from gateway.caches.newest import Newest
from gateway.inference.least_loaded import LeastLoaded, has_backlog
from gateway.inference.leaving_jobs import LeavingJobs
from modelyard.contract.catalog.entries import Profile
from modelyard.contract.errors import ErrorCode, ModelyardError, StoreUnavailableError
from modelyard.contract.states import JobState
from modelyard.process.batching import Coalescer
from modelyard.process.tasks import together
from modelyard.store import Store
from modelyard.store.queries.serving_jobs import Copies, ServingJob

FRESH_S = 0.2
"""How long a reading is used."""
KEPT_S = 60.0
"""How long it is used while MongoDB is down."""
READ_S = 1.0
"""How long an inference waits for a reading."""
WINDOW = 32
"""Most jobs in a reading; if there are more, the next reading has the ones behind them."""
MAX_REMEMBERED = 1_000
"""Most models of which a reading is kept."""
MAX_GROUP = 32
"""Most models that are read at the same time."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why none of the jobs takes an inference."""

    code: ErrorCode
    message: str


@dataclass(frozen=True, slots=True)
class _CopiesReading:
    jobs: LeastLoaded
    read_at: float
    """By the gateway's monotonic clock."""
    refusal: Refusal | None
    """Set if there are no jobs."""
    last: str | None
    """The job behind which the next reading begins; None: at the first one."""


class JobChoice:
    """Chooses jobs. It needs `run` to be running."""

    def __init__(
        self,
        store: Store,
        availability: Availability,
        leaving: LeavingJobs,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`availability` is that of the store."""
        self._store = store
        self._availability = availability
        self._clock = clock
        self._readings: Newest[Copies, _CopiesReading] = Newest(MAX_REMEMBERED)
        self._leaving = leaving
        # Those who ask at the same time share one reading.
        self._reads: Coalescer[Copies, _CopiesReading] = Coalescer(
            self._read_group, max_items=MAX_GROUP
        )

    async def run(self) -> None:
        """Read jobs until cancelled."""
        await self._reads.run()

    async def job_for(self, copies: Copies) -> str:
        """Return the job that takes the next inference.

        Raises `ModelyardError` with `not_found`, `unsupported_verb` or `no_serving_job`, and
        `StoreUnavailableError`.
        """
        reading = self._readings.get(copies)
        if reading is None or self._age_s(reading) >= FRESH_S:
            reading = await self._newer(copies, reading)
        chosen = reading.jobs.next_job(self._leaving)
        if chosen is not None:
            return chosen
        refusal = reading.refusal or Refusal(ErrorCode.NO_SERVING_JOB, "")
        raise ModelyardError(refusal.code, refusal.message)

    def _age_s(self, reading: _CopiesReading) -> float:
        return self._clock() - reading.read_at

    async def _newer(self, copies: Copies, known: _CopiesReading | None) -> _CopiesReading:
        try:
            return await self._reads.submit(copies)
        except StoreUnavailableError:
            if known is None or known.refusal is not None or self._age_s(known) > KEPT_S:
                raise
            return known

    async def _read_group(self, wanted: Sequence[Copies]) -> list[_CopiesReading | Exception]:
        answers: dict[Copies, _CopiesReading | Exception] = {
            one: known
            for one in wanted
            if (known := self._readings.get(one)) is not None and self._age_s(known) < FRESH_S
        }
        outdated = [one for one in dict.fromkeys(wanted) if one not in answers]
        made = await together(*(self._read(one) for one in outdated)) if outdated else ()
        for copies, reading in zip(outdated, made, strict=True):
            answers[copies] = reading
            if isinstance(reading, _CopiesReading):
                self._readings[copies] = reading
        return [answers[one] for one in wanted]

    async def _read(self, copies: Copies) -> _CopiesReading | Exception:
        """Return a reading, or why there is none: it is for those who asked for these jobs."""
        read_at = self._clock()
        known = self._readings.get(copies)
        after = known.last if known else None
        try:
            jobs, last, refusal = await self._availability.ask(
                lambda: self._ask(copies, after), within_s=READ_S
            )
        except ModelyardError as error:
            return error
        return _CopiesReading(LeastLoaded(jobs), read_at, refusal, last)

    async def _ask(
        self, copies: Copies, after: str | None
    ) -> tuple[list[ServingJob], str | None, Refusal | None]:
        serving = self._store.serving_jobs
        jobs = await serving.resident(copies, limit=WINDOW, after=after)
        last = jobs[-1].job_id if len(jobs) == WINDOW else None
        if all(has_backlog(one.open, one.max_concurrency) for one in jobs):
            jobs += await serving.loadable(copies, limit=WINDOW)
        return jobs, last, None if jobs else await self._refusal(copies)

    async def _refusal(self, copies: Copies) -> Refusal:
        spec, states = await together(
            self._store.models.get(copies.model), self._store.serving_jobs.states(copies)
        )
        if spec is None:
            return unknown_model(copies.model)
        if spec.profile is Profile.BATCH:
            message = f"Model {copies.model!r} has the profile batch, which knows only TEMP."
            return Refusal(ErrorCode.UNSUPPORTED_VERB, message)
        return Refusal(ErrorCode.NO_SERVING_JOB, _what_there_is(copies, states))


def unknown_model(name: str) -> Refusal:
    """Return the refusal for a model that the catalog does not have."""
    return Refusal(ErrorCode.NOT_FOUND, f"The catalog has no model {name}.")


def _what_there_is(copies: Copies, states: dict[JobState, int]) -> str:
    """Return which jobs there are and why none can take an inference, and what helps."""
    which = f"of model {copies.model!r}"
    if copies.dataset is not None:
        which += f" with the dataset {copies.dataset!r}"
    if not states:
        return f"There is no job {which}: create one with DEPLOY_CREATE."
    counts = ", ".join(f"{states[one]} {one}" for one in JobState if one in states)
    said = [f"No job {which} can take an inference now. There are: {counts}."]
    if JobState.CREATED in states:
        said.append("Load a CREATED one with DEPLOY_LOAD: its model is not loaded on demand.")
    if JobState.LOADED in states:
        said.append("The host of a LOADED one is silent, or it is about to be unloaded.")
    said.append("Or create another one with DEPLOY_CREATE.")
    return " ".join(said)
