"""Stories of jobs: what is asked of them, and how a host's worker reports on each attempt."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from modelyard.contract.catalog.entries import ModelSpec, Profile
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.messages import JobRequest, OperationReport, Progress
from modelyard.contract.states import JobState, OperationState, Phase, Verb
from modelyard.store.records import OperationRecord

MODEL = ModelSpec(name="m", image="x/y", profile=Profile.OPEN_INFERENCE, port=8080)
JOBS = 3
TRIES = 3
"""Ways at most in which the attempts of one operation go."""
PHASES = (Phase.PULLING, Phase.CREATING, Phase.LOADING)


@dataclass(frozen=True)
class End:
    """How a worker ends an attempt, and what it says of the job then."""

    state: OperationState
    job_state: JobState | None
    code: ErrorCode | None = None


def done(job_state: JobState | None) -> End:
    """Succeed."""
    return End(OperationState.SUCCEEDED, job_state)


def failed(code: ErrorCode, job_state: JobState | None) -> End:
    """Fail with a cause."""
    return End(OperationState.FAILED, job_state, code)


OVERDUE = End(OperationState.TIMED_OUT, JobState.FAILED, ErrorCode.TIMED_OUT)
ENDS: Mapping[Verb, Sequence[End]] = {
    Verb.DEPLOY_CREATE: (
        done(JobState.CREATED),
        failed(ErrorCode.CREATE_FAILED, JobState.FAILED),
        failed(ErrorCode.ENGINE_UNAVAILABLE, JobState.FAILED),
        End(OperationState.CANCELLED, JobState.TERMINATED, ErrorCode.CANCELLED),
        OVERDUE,
    ),
    Verb.DEPLOY_LOAD: (
        done(JobState.LOADED),
        failed(ErrorCode.LOAD_FAILED, JobState.FAILED),
        failed(ErrorCode.ENGINE_UNAVAILABLE, None),
        End(OperationState.CANCELLED, JobState.CREATED, ErrorCode.CANCELLED),
        OVERDUE,
    ),
    Verb.INFER: (
        done(None),
        failed(ErrorCode.INFERENCE_FAILED, None),
        failed(ErrorCode.EXITED, JobState.FAILED),
    ),
    Verb.DEPLOY_UNLOAD: (done(JobState.CREATED), failed(ErrorCode.UNLOAD_FAILED, None)),
    Verb.TERMINATE: (
        done(JobState.TERMINATED),
        failed(ErrorCode.ENGINE_UNAVAILABLE, None),
    ),
    Verb.TEMP: (
        done(JobState.TERMINATED),
        failed(ErrorCode.INFERENCE_FAILED, JobState.FAILED),
        failed(ErrorCode.ENGINE_UNAVAILABLE, JobState.FAILED),
        End(OperationState.CANCELLED, JobState.TERMINATED, ErrorCode.CANCELLED),
        OVERDUE,
    ),
}
AWAY = (Verb.DEPLOY_CREATE, Verb.DEPLOY_CREATE, Verb.TEMP)
NEXT: Mapping[JobState, Sequence[Verb]] = {
    JobState.CREATED: (Verb.DEPLOY_LOAD, Verb.DEPLOY_LOAD, Verb.TERMINATE),
    JobState.LOADED: (Verb.INFER, Verb.INFER, Verb.DEPLOY_UNLOAD, Verb.TERMINATE),
}
"""What is asked of a job in a state; `AWAY` of one that is not live."""


@dataclass(frozen=True)
class Ask:
    """One operation, and how each of its attempts goes."""

    operation_id: str
    job_id: str
    verb: Verb
    tries: tuple[tuple[int, End], ...]
    """By epoch: reports on the way, and the end."""

    @property
    def request(self) -> JobRequest:
        """What a client sends."""
        fields: dict[str, object] = {"job_id": self.job_id, "operation_type": self.verb}
        if self.verb in AWAY:
            fields["model"] = MODEL.name
        if self.verb is Verb.INFER:
            fields["input"] = {"x": 1}
        return JobRequest.model_validate(fields)

    def reports(self, attempt: OperationRecord) -> Iterator[OperationReport]:
        """Return all that a worker says of one attempt, in order."""
        on_the_way, end = self.tries[(attempt.epoch - 1) % len(self.tries)]
        made = _Reports(attempt)
        yield made.next(OperationState.RUNNING)
        for n in range(on_the_way):
            progress = Progress(current=n, total=9, unit="layers")
            yield made.next(OperationState.RUNNING, phase=PHASES[n], progress=progress)
        succeeded = end.state is OperationState.SUCCEEDED
        yield made.next(
            end.state,
            job_state=end.job_state,
            container_id=_container_of(attempt) if succeeded else None,
            error=ErrorInfo.of(end.code) if end.code else None,
            result_json='{"y": 2}' if succeeded and self.verb in (Verb.INFER, Verb.TEMP) else None,
        )


def _container_of(attempt: OperationRecord) -> str:
    return hashlib.sha256(f"{attempt.job_id}-{attempt.generation}".encode()).hexdigest()


class _Reports:
    """Numbers the reports of one attempt."""

    def __init__(self, attempt: OperationRecord) -> None:
        self._attempt = attempt
        self._seq = 0

    def next(self, state: OperationState, **fields: object) -> OperationReport:
        self._seq += 1
        attempt = self._attempt
        told = {
            "operation_id": attempt.operation_id,
            "epoch": attempt.epoch,
            "seq": self._seq,
            "job_id": attempt.job_id,
            "generation": attempt.generation,
            "state": state,
        }
        return OperationReport.model_validate(told | fields)


@st.composite
def stories(draw: st.DrawFn) -> list[list[Ask]]:
    """Return what is asked step by step: of each job one operation, or inferences together."""
    states = dict.fromkeys((f"j{n}" for n in range(draw(st.integers(1, JOBS)))), JobState.NONE)
    story: list[list[Ask]] = []
    for _ in range(draw(st.integers(1, 6))):
        asks: list[Ask] = []
        for job_id, state in states.items():
            verb = draw(st.sampled_from(NEXT.get(state, AWAY)))
            for _ in range(draw(st.integers(1, 2)) if verb is Verb.INFER else 1):
                end = st.just(ENDS[verb][0]) | st.sampled_from(ENDS[verb])
                one = st.tuples(st.integers(0, len(PHASES)), end)
                tries = draw(st.lists(one, min_size=1, max_size=TRIES))
                key = f"0190c2f0-0000-7000-8000-{len(story):06d}{len(asks):06d}"
                asks.append(Ask(key, job_id, verb, tuple(tries)))
                states[job_id] = tries[-1][1].job_state or states[job_id]
        story.append(asks)
    return story
