"""Who holds what a host lacks, and when what runs gives back enough of it."""

from datetime import timedelta
from typing import Any

import pytest

from modelyard.contract.capacity.ledger import Allocation, ResidentAllocation
from modelyard.contract.capacity.offers import DeviceReading
from modelyard.contract.states import JobState, OperationState, Verb
from modelyard.contract.views import Explanation, HolderView
from modelyard.scheduling.explaining import explain_in_line
from modelyard.scheduling.holders import MOST_HOLDERS, HeldUntil
from modelyard.store.records import JobLine
from tests.support.scheduling import GIB, NOW, A, catalog, facts, host, job, operation, spec

NEW = job(JobState.NONE, host_id=None, generation=0)
B = "GPU-b"


def placing(*held: Allocation, needs: dict[str, Any], **more: Any) -> Explanation:
    """Return why a TEMP with these needs waits for the host that these hold."""
    there, known = host(*held, slots=more.pop("slots", None)), catalog(spec(resources=needs))
    return explain_in_line(
        facts(operation(Verb.TEMP), of=NEW, catalog=known, hosts=[there], **more)
    )


def holders(found: Explanation) -> list[tuple[str, float, int, str | None]]:
    return [(it.job_id, it.cpus, it.slots, it.stays) for it in found.hosts[0].holders]


def runs(job_id: str, *, ago_s: float, model: str = "m", **more: Any) -> JobLine:
    """Return a job that runs a TEMP since so many seconds."""
    began = NOW - timedelta(seconds=ago_s)
    temp = operation(Verb.TEMP, 1, "RUNNING", job_id=job_id, model=model, started_at=began, **more)
    return JobLine(job=job(JobState.CREATED, job_id=job_id), operations=(temp,))


def temp(job_id: str, **more: Any) -> Allocation:
    return Allocation(job_id=job_id, generation=1, temporary=True, **more)


def test_who_holds_the_processors_is_listed_the_largest_first() -> None:
    small = Allocation(job_id="small", generation=1, millicpus=1_500)
    found = placing(small, temp("large", millicpus=5_000), needs={"cpus": 4.0})
    assert found.hosts[0].refusal == "it needs 4 CPUs, and 1.5 are free now"
    assert holders(found) == [
        ("large", 5.0, 1, HeldUntil.END),
        ("small", 1.5, 1, HeldUntil.TERMINATE),
    ]


def test_who_holds_the_slots_is_listed_up_to_a_bound() -> None:
    held = [Allocation(job_id=f"j{number:02}", generation=1) for number in range(30)]
    found = placing(*held, needs={}, slots=30)
    assert [it.job_id for it in found.hosts[0].holders] == [
        f"j{number:02}" for number in range(MOST_HOLDERS)
    ]


def test_of_those_who_hold_memory_a_model_frees_its_part_and_a_container_all_of_it() -> None:
    resident = ResidentAllocation(memory=10 * GIB)
    model = Allocation(job_id="model", generation=1, memory=GIB, resident=resident)
    container = Allocation(job_id="container", generation=1, memory=20 * GIB)
    idle = job(job_id="model", spec=spec(residency={"on_demand": True}), loaded_at=None)
    line = JobLine(job=idle, operations=())
    found = placing(model, container, needs={"memory": "2g"}, holding={"model": line})
    assert found.hosts[0].holders == (
        HolderView(
            job_id="container", frees={"memory": 20 * GIB}, slots=1, stays=HeldUntil.TERMINATE
        ),
        HolderView(job_id="model", model="m", frees={"memory": 10 * GIB}),
    )


def test_what_would_be_too_little_on_an_empty_host_is_held_by_nobody() -> None:
    found = placing(temp("t", millicpus=5_000), needs={"cpus": 64.0})
    assert holders(found) == []


def test_for_a_load_only_who_holds_memory_of_its_own_device_is_listed() -> None:
    def loaded(job_id: str, uuid: str) -> Allocation:
        resident = ResidentAllocation(devices={uuid: 8 * GIB})
        return Allocation(job_id=job_id, generation=1, devices=(uuid,), resident=resident)

    mine = Allocation(job_id="j", generation=1, memory=GIB, devices=(A,))
    model = spec(resources={"gpus": 1, "gpu_memory": "6g"}, residency={"relocate": False})
    lines = {name: JobLine(job=job(job_id=name), operations=()) for name in ("a", "b")}
    found = explain_in_line(
        facts(
            operation(Verb.DEPLOY_LOAD),
            of=job(JobState.CREATED, spec=model, devices=(A,)),
            hosts=[host(mine, loaded("a", A), loaded("b", B))],
            holding=lines,
            more_urgent=2,
        )
    )
    assert [it.job_id for it in found.hosts[0].holders] == ["a"]
    assert (found.ahead_in_waiting_room, found.estimated_start_s) == (2, None)


@pytest.mark.parametrize(
    ("line", "more", "said"),
    [
        (runs("t", ago_s=4.0), {"temps_took_s": {"m": 10.0}}, 6.0),
        (runs("t", ago_s=4.0, timeout_s=60.0), {"temps_took_s": {"m": 10.0}}, 6.0),
        (runs("t", ago_s=14.0, timeout_s=60.0), {"temps_took_s": {"m": 10.0}}, 46.0),
        (runs("t", ago_s=14.0), {"temps_took_s": {"m": 10.0}}, None),
        (runs("t", ago_s=4.0, timeout_s=60.0), {}, 56.0),
        (runs("t", ago_s=4.0), {}, None),
        (runs("t", ago_s=4.0), {"temps_took_s": {"m": 10.0}, "more_urgent": 1}, None),
    ],
)
def test_a_start_is_foretold_by_what_runs_and_ends_by_itself(
    line: JobLine, more: dict[str, Any], said: float | None
) -> None:
    held = temp("t", millicpus=6_000)
    found = placing(held, needs={"cpus": 4.0}, holding={"t": line}, **more)
    assert found.state is OperationState.QUEUED
    assert found.estimated_start_s == said


def test_it_starts_when_enough_has_ended() -> None:
    held = [temp(name, millicpus=2_000) for name in ("t1", "t2", "t3")]
    lines = {name: runs(name, ago_s=ago) for name, ago in (("t1", 1.0), ("t2", 5.0), ("t3", 3.0))}
    found = placing(*held, needs={"cpus": 6.0}, holding=lines, temps_took_s={"m": 10.0})
    assert found.estimated_start_s == 7.0, "t2 ends after 5 s and is not enough, t3 after 7 s"
    never = Allocation(job_id="stays", generation=1, millicpus=4_000)
    found = placing(*held[:2], never, needs={"cpus": 6.0}, holding=lines, temps_took_s={"m": 10.0})
    assert found.estimated_start_s is None


def test_a_load_starts_when_a_temp_has_given_its_device_back() -> None:
    held = temp("t", devices=(A,), resident=ResidentAllocation(devices={A: 6 * GIB}))
    mine = Allocation(job_id="j", generation=1, memory=GIB, devices=(A,))
    model = spec(resources={"gpus": 1, "gpu_memory": "4g"}, residency={"relocate": False})
    for used, said in ((6, 6.0), (8, 6.0), (11, None)):
        reading = DeviceReading(uuid=A, memory_used=used * GIB)
        found = explain_in_line(
            facts(
                operation(Verb.DEPLOY_LOAD),
                of=job(JobState.CREATED, spec=model, devices=(A,)),
                hosts=[host(held, mine, readings=(reading,))],
                holding={"t": runs("t", ago_s=4.0)},
                temps_took_s={"m": 10.0},
            )
        )
        assert found.estimated_start_s == said, "what others use stays"
