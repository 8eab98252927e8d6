"""Where an unloaded job goes whose model has no room: another device, another host, or nowhere."""

from typing import Any

import pytest

from modelyard.contract.capacity.ledger import Allocation, ResidentAllocation
from modelyard.contract.capacity.offers import Device, HostCapacity
from modelyard.contract.errors import ErrorCode
from modelyard.contract.states import Admission, JobState, OperationState, SystemReason, Verb
from modelyard.scheduling.ordering import CatalogEntries
from modelyard.scheduling.placement import FreeCapacity, Kept, Placed
from modelyard.scheduling.planning import SchedulingPlan, make_plan
from modelyard.store.records import (
    CurrentOperation,
    HostRecord,
    JobLine,
    JobRecord,
    OperationRecord,
    RelocationRecord,
)
from tests.support.scheduling import GIB, host, job, operation, spec

B = "GPU-b"
FULL = {"GPU-a": 8 * GIB}


def there(name: str, *held: Allocation, devices: str = "ab", **more: Any) -> HostRecord:
    offer = HostCapacity(
        cpus=8.0,
        memory=32 * GIB,
        devices=tuple(Device(uuid=f"GPU-{it}", memory=8 * GIB) for it in devices),
    )
    return host(*held, host_id=name, capacity=offer, **more)


def mine(device: str = "GPU-a", **more: Any) -> Allocation:
    fields = {"job_id": "j", "generation": 1, "millicpus": 1_000, "memory": GIB}
    return Allocation.model_validate({**fields, "devices": (device,), **more})


def loaded(name: str, **devices: int) -> Allocation:
    held = {f"GPU-{it}": amount * GIB for it, amount in devices.items()}
    return Allocation(
        job_id=name, generation=1, devices=tuple(held), resident=ResidentAllocation(devices=held)
    )


def unloaded(*, relocate: bool = True, **more: Any) -> JobRecord:
    model = spec(resources={"gpus": 1, "gpu_memory": "6g"}, residency={"relocate": relocate})
    fields = {"spec": model, "devices": ("GPU-a",), **more}
    return job(JobState.CREATED, **fields)


def planned(*hosts: HostRecord, of: JobRecord, first: OperationRecord) -> SchedulingPlan:
    capacity = FreeCapacity({one.host_id: one for one in hosts})
    return make_plan([JobLine(job=of, operations=(first,))], CatalogEntries({}, {}), capacity)


def elsewhere(*hosts: HostRecord, of: JobRecord | None = None) -> tuple[str, str] | None:
    """Return host and device to which the job goes if its LOAD has no room."""
    plan = planned(*hosts, of=of or unloaded(), first=operation(Verb.DEPLOY_LOAD))
    assert plan.dispatches == []
    (crowded,) = plan.crowded
    found = crowded.elsewhere
    return (found.host.host_id, *found.allocation.devices) if found else None  # type: ignore[return-value]


def test_another_device_of_its_host_goes_before_another_host() -> None:
    crowded = there("h", mine(), loaded("other", a=8))
    assert elsewhere(there("g"), crowded) == ("h", B)
    full = there("h", mine(), loaded("other", a=8), loaded("third", b=4))
    assert elsewhere(there("g"), full) == ("g", "GPU-a")
    assert elsewhere(full) is None


def test_a_host_without_room_for_a_second_container_still_has_another_device() -> None:
    crowded = there("h", mine(millicpus=8_000, memory=31 * GIB), loaded("other", a=8), slots=2)
    assert elsewhere(crowded) == ("h", B)


def test_a_job_that_may_not_be_relocated_or_is_being_moved_stays() -> None:
    crowded = there("h", mine(), loaded("other", a=8))
    assert elsewhere(crowded, of=unloaded(relocate=False)) is None
    move = RelocationRecord(host_id="g", generation=2, state=JobState.CREATED)
    assert elsewhere(crowded, of=unloaded(move=move)) is None


def test_a_host_that_takes_no_new_jobs_gives_no_other_device() -> None:
    crowded = there("h", mine(), loaded("other", a=8), admission=Admission.CORDONED)
    assert elsewhere(crowded) is None


def test_a_load_that_has_room_goes_nowhere() -> None:
    plan = planned(there("h", mine()), of=unloaded(), first=operation(Verb.DEPLOY_LOAD))
    assert [one.operation.verb for one in plan.dispatches] == [Verb.DEPLOY_LOAD]
    assert plan.crowded == []


def test_one_place_is_promised_to_one_job() -> None:
    capacity = FreeCapacity({"h": there("h", mine(), loaded("other", a=8))})
    of = unloaded()
    assert of.spec is not None
    first = capacity.elsewhere(of, of.spec)
    assert isinstance(first, Placed)
    assert first.allocation == mine(B, generation=2)
    assert capacity.elsewhere(of, of.spec) is None


def test_what_is_kept_for_the_job_itself_is_not_kept_from_it() -> None:
    crowded, of = there("h", mine(), loaded("other", a=8)), unloaded()
    assert of.spec is not None
    need = FreeCapacity({"h": crowded}).request_to_load(of, of.spec).resident
    kept = [Kept("h", "j", 0, need, (B,))]
    capacity = FreeCapacity({"h": crowded}, {"h": kept}.__getitem__)
    assert capacity.elsewhere(of, of.spec) is not None


@pytest.mark.parametrize("rank", [0, 2])
def test_what_others_left_memory_for_is_no_reason_to_go_there_however_long_a_load_has_waited(
    rank: int,
) -> None:
    crowded, of = there("h", mine(), loaded("other", a=8)), unloaded()
    assert of.spec is not None
    need = FreeCapacity({"h": crowded}).request_to_load(of, of.spec).resident
    kept = [Kept("h", "somebody", rank, need, (B,))]
    capacity = FreeCapacity({"h": crowded}, {"h": kept}.__getitem__)
    load = operation(Verb.DEPLOY_LOAD, rank=1)
    plan = make_plan([JobLine(job=of, operations=(load,))], CatalogEntries({}, {}), capacity)
    assert [one.elsewhere for one in plan.crowded] == [None]


def create(**more: Any) -> OperationRecord:
    reason = SystemReason.RELOCATED_FOR.about("op-9")
    return operation(Verb.DEPLOY_CREATE, 1, source="system", reason=reason, **more)


@pytest.mark.parametrize(
    ("crowded", "rebinds", "place"),
    [
        (there("h", mine(), loaded("other", a=8)), True, ("h", (B,))),
        (there("h", mine(), loaded("other", a=8), devices="a"), False, ("g", ("GPU-a",))),
    ],
)
def test_the_create_that_was_put_first_brings_it_there(
    crowded: HostRecord, *, rebinds: bool, place: tuple[str, tuple[str, ...]]
) -> None:
    plan = planned(crowded, there("g"), of=unloaded(), first=create())
    (start,) = plan.dispatches
    assert start.allocation is not None
    assert (start.host.host_id, start.allocation.devices) == place
    assert (start.rebinds, start.generation, start.allocation.resident) == (rebinds, 2, None)


def test_if_there_is_no_room_elsewhere_any_more_the_job_stays_as_it_is() -> None:
    full = there("h", mine(), loaded("other", a=8), loaded("third", b=4))
    plan = planned(full, of=unloaded(), first=create())
    (start,) = plan.dispatches
    assert (start.host.host_id, start.generation, start.placement) == ("h", 1, None)
    assert plan.endings == []


def test_a_relocation_that_has_been_assigned_goes_on_where_it_is() -> None:
    begun = CurrentOperation(operation_id="op-1", epoch=1, token="t")
    of = unloaded(host_id="g", generation=2, current=begun)
    held = mine(generation=2)
    plan = planned(there("g", held), there("h"), of=of, first=create())
    (start,) = plan.dispatches
    assert (start.host.host_id, start.generation, start.placement) == ("g", 2, None)


@pytest.mark.parametrize("state", [JobState.LOADED, JobState.FAILED, JobState.LOST])
def test_a_job_that_is_not_unloaded_any_more_is_not_relocated(state: JobState) -> None:
    """Its LOAD has started after all, or it is down; a relocation must not bring it back."""
    host_id = "h" if state.live else None
    of = unloaded().model_copy(update={"state": state, "host_id": host_id})
    plan = planned(there("h", mine(), loaded("other", a=8)), of=of, first=create())
    assert plan.dispatches == []
    (ending,) = plan.endings
    assert ending.error is not None
    assert (ending.state, ending.error.code) == (
        OperationState.REJECTED,
        ErrorCode.INVALID_JOB_STATE,
    )


def test_a_host_that_holds_a_later_generation_of_the_job_is_left_to_the_sweep() -> None:
    left = there("h", mine(B, generation=2), loaded("other", a=8))
    assert elsewhere(left) is None


def test_a_create_of_a_client_is_no_relocation() -> None:
    crowded = there("h", mine(), loaded("other", a=8))
    asked = operation(Verb.DEPLOY_CREATE, 1, reason=SystemReason.RELOCATED_FOR.about("op-9"))
    (start,) = planned(crowded, of=unloaded(), first=asked).dispatches
    assert (start.relocates, start.generation) == (False, 1)
    assert OperationState.QUEUED is asked.state
