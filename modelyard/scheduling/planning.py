"""Planning: what one pass of the scheduler does, decided over a snapshot. Pure.

The dispatcher writes the plan; the gateway reads from it what would become of a request.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from modelyard.contract.capacity.footprints import Learned
from modelyard.contract.capacity.ledger import Allocation, ResidentAllocation
from modelyard.contract.capacity.needs import ResidentNeed
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.states import JobState, Liveness, OperationState, Verb
from modelyard.scheduling.fitting import PlacementRequest
from modelyard.scheduling.locality import to_fetch
from modelyard.scheduling.ordering import (
    AlreadySatisfied,
    CatalogEntries,
    Decision,
    Dispatch,
    LoadFirst,
    PlaceAndDispatch,
    Reject,
    Relocate,
    TerminateBehind,
    next_decisions,
)
from modelyard.scheduling.placement import FreeCapacity, Placed, Unplaced
from modelyard.store.operation_writes import DispatchClaim
from modelyard.store.operations import QueuedEnding
from modelyard.store.records import HostRecord, JobLine, JobRecord, OperationRecord

UNWANTED = "It was withdrawn: its model had no room, and nothing in line needs it any more."
WITHDRAWN = "It was withdrawn: no host could take it, and a TERMINATE waited behind it."
URGENT = 50
"""Most urgent operations without a host that join a pass in which some job may take capacity."""


@dataclass(frozen=True, slots=True)
class Crowded:
    """An operation that could start if models were unloaded."""

    operation: OperationRecord
    request: PlacementRequest
    host_id: str | None = None
    """The host that its job is on; None: any host would do."""
    bound: tuple[str, ...] = ()
    """The devices that are bound to its job's container."""
    elsewhere: Placed | None = None
    """Where its job could be created anew, so that its model has room."""

    @property
    def elsewhere_at_hand(self) -> bool:
        """True if a container starts elsewhere without fetching its image or its dataset first."""
        if self.elsewhere is None:
            return False
        there = self.elsewhere.host
        return there.host_id == self.host_id or not to_fetch(there, self.request)

    @property
    def need(self) -> ResidentNeed:
        """What it needs that models could leave to it: of the host's memory, and of devices.

        What is placed needs the memory of its container as well; a CREATE needs no more than that.
        """
        request = self.request
        if self.host_id is not None:
            return request.resident
        memory = request.container.memory
        if not request.at_once:
            return ResidentNeed(memory=memory)
        return replace(request.resident, memory=memory + request.resident.memory)


@dataclass(frozen=True)
class PlannedDispatch:
    """One operation that this pass will dispatch to a host."""

    operation: OperationRecord
    job: JobRecord
    host: HostRecord
    generation: int
    placement: PlaceAndDispatch | None = None
    """Set if the operation needs a new reservation."""
    allocation: Allocation | None = None
    """What is reserved then."""
    resident: ResidentAllocation | None = None
    """Set if the operation loads a model that needs more than its container holds."""
    relocates: bool = False
    """True if the job has a container already, which the new one replaces."""

    @property
    def rebinds(self) -> bool:
        """True if the job stays on its host: the new container takes over what the old one held."""
        return self.relocates and self.job.host_id == self.host.host_id

    @cached_property
    def claim(self) -> DispatchClaim:
        """The request to dispatch it: one for memory and record, so that both have its time."""
        incarnation = self.host.incarnation or ""
        return DispatchClaim(self.operation, self.host.host_id, incarnation, self.generation)


@dataclass(slots=True)
class SchedulingPlan:
    """The outcome of one pass, before any of it is written."""

    endings: list[QueuedEnding] = field(default_factory=list)
    terminated_jobs: list[str] = field(default_factory=list)
    """Jobs whose TERMINATE succeeds as it is, because they have no container."""
    dispatches: list[PlannedDispatch] = field(default_factory=list)
    loads: list[LoadFirst] = field(default_factory=list)
    """Inferences whose model has to be loaded before."""
    crowded: list[Crowded] = field(default_factory=list)
    """Operations that could start if models were unloaded."""
    beyond_help: list[str] = field(default_factory=list)
    """Jobs that wait for a host and for something else than what models hold."""
    explained: list[OperationRecord] = field(default_factory=list)
    """Operations that stay QUEUED for other reasons than before, with their new reasons."""

    @property
    def waiting(self) -> dict[str, tuple[str, ...]]:
        """The new reasons by operation id."""
        return {one.operation_id: one.waiting_for for one in self.explained}


def make_plan(
    lines: Sequence[JobLine], catalog: CatalogEntries, capacity: FreeCapacity
) -> SchedulingPlan:
    """Decide over a snapshot. Capacity is given in order of rank."""
    plan = SchedulingPlan()
    decisions = [decision for line in lines for decision in next_decisions(line, catalog)]
    for decision in sorted(decisions, key=_urgency):
        _apply(decision, plan, capacity)
    return plan


def catalog_names(line: JobLine) -> frozenset[tuple[str, str]]:
    """Return the kinds and names of the catalog entries that a line may need."""
    placing = [operation for operation in line.operations if operation.places]
    return frozenset(
        (kind, name)
        for one in placing
        for kind, name in (("model", one.model), ("dataset", one.dataset))
        if name
    )


def may_take_capacity(line: JobLine) -> bool:
    """Tell whether an operation that waits in a line may need room on a host."""
    return any(
        one.state is OperationState.QUEUED and (one.places or one.verb is Verb.DEPLOY_LOAD)
        for one in line.operations
    )


def placement_request(decision: PlaceAndDispatch, learned: Learned) -> PlacementRequest:
    """Return what an operation that is to be placed needs of its host."""
    operation = decision.operation
    request = PlacementRequest.of(
        decision.job,
        decision.spec,
        learned,
        at_once=operation.verb is Verb.TEMP,
        dataset=decision.dataset,
        avoid=frozenset(operation.avoid),
    )
    return replace(request, rank=operation.rank, temporary=operation.verb is Verb.TEMP)


def _urgency(decision: Decision) -> tuple[int, int]:
    return decision.operation.rank, decision.operation.line or 0


def _apply(decision: Decision, plan: SchedulingPlan, capacity: FreeCapacity) -> None:
    operation = decision.operation
    match decision:
        case Reject(error=error):
            plan.endings.append(QueuedEnding(operation, OperationState.REJECTED, error))
        case AlreadySatisfied():
            plan.endings.append(QueuedEnding(operation, OperationState.SUCCEEDED))
            plan.terminated_jobs.append(operation.job_id or "")
        case LoadFirst():
            plan.loads.append(decision)
        case Dispatch(host_id=host_id):
            host = capacity.host(host_id)
            if host is None or host.incarnation is None:
                _wait(plan, operation, (f"host {host_id} is not known",))
            elif host.liveness is not Liveness.ONLINE:
                # A command in its queue could not be cancelled, and no deadline would apply to it.
                _wait(plan, operation, (f"host {host_id} is {host.liveness}",))
            else:
                _dispatch_there(decision, host, plan, capacity)
        case PlaceAndDispatch():
            _place(decision, plan, capacity)
        case Relocate():
            _relocate(decision, plan, capacity)


def _place(decision: PlaceAndDispatch, plan: SchedulingPlan, capacity: FreeCapacity) -> None:
    operation, job, ended_by = decision.operation, decision.job, decision.ended_by
    request = placement_request(decision, capacity.learned(decision.spec))
    chosen = capacity.place(request)
    if isinstance(chosen, Placed):
        generation = chosen.allocation.generation
        plan.dispatches.append(
            PlannedDispatch(operation, job, chosen.host, generation, decision, chosen.allocation)
        )
    elif ended_by is TerminateBehind.NEXT or (ended_by is not None and chosen.hopeless):
        error = ErrorInfo.of(ErrorCode.CANCELLED, WITHDRAWN)
        plan.endings.append(QueuedEnding(operation, OperationState.CANCELLED, error))
    else:
        _wait(plan, operation, chosen.reasons)
        if chosen.crowded:
            plan.crowded.append(Crowded(operation, request))
        else:
            plan.beyond_help.append(job.job_id)


def _relocate(decision: Relocate, plan: SchedulingPlan, capacity: FreeCapacity) -> None:
    """Create an unloaded job where its model has room now.

    If it has none any more the job stays, and its host is asked for the container that it has. To
    end the operation here instead would be wrong while another pass is dispatching it: only one of
    two passes can assign the job, but an operation that is QUEUED can be ended at any time.
    """
    operation, job = decision.operation, decision.job
    chosen = capacity.elsewhere(job, decision.spec) if job.move is None else None
    if chosen is None:
        _apply(Dispatch(operation, job, job.host_id or ""), plan, capacity)
        return
    generation = chosen.allocation.generation
    placement = PlaceAndDispatch(operation, job, decision.spec, job.dataset_spec)
    plan.dispatches.append(
        PlannedDispatch(
            operation, job, chosen.host, generation, placement, chosen.allocation, relocates=True
        )
    )


def _dispatch_there(
    decision: Dispatch, host: HostRecord, plan: SchedulingPlan, capacity: FreeCapacity
) -> None:
    """Dispatch an operation to the host that its job is on; a LOAD only if the model has room."""
    operation, job = decision.operation, decision.job
    resident: ResidentAllocation | Unplaced | None = None
    if operation.verb is Verb.DEPLOY_LOAD and job.state is JobState.CREATED and job.spec:
        resident = capacity.hold(job, job.spec, operation.rank)
    if not isinstance(resident, Unplaced):
        plan.dispatches.append(
            PlannedDispatch(operation, job, host, job.generation, resident=resident)
        )
        return
    if decision.unwanted:
        error = ErrorInfo.of(ErrorCode.CANCELLED, UNWANTED)
        plan.endings.append(QueuedEnding(operation, OperationState.CANCELLED, error))
        return
    _wait(plan, operation, resident.reasons)
    if job.spec is not None:
        request = capacity.request_to_load(job, job.spec)
        may_move = job.spec.residency.relocate and job.move is None
        elsewhere = capacity.elsewhere(job, job.spec) if may_move else None
        plan.crowded.append(Crowded(operation, request, host.host_id, job.devices, elsewhere))


def _wait(plan: SchedulingPlan, operation: OperationRecord, reasons: tuple[str, ...]) -> None:
    if operation.waiting_for != reasons:
        plan.explained.append(operation.model_copy(update={"waiting_for": reasons}))
