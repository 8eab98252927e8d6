"""The second act of `make demo`: three models share two devices, each of which holds one of them.

The devices are declared, so no GPU is needed: the ledger, the binding of containers and the
scheduling are those of real ones. The first two inferences have their models loaded on demand. The
third one's model has no place until another one, which was loaded a moment ago, may leave.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.table import Table

from modelyard.contract.states import OperationState, SystemReason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploy.local.progress import Progress
    from modelyard.client import Modelyard
    from modelyard.contract.views import Explanation, OperationView

JOBS = ("shared-a", "shared-b", "shared-c")
_MIN_RESIDENT_S = 4.0
"""Long enough that the third inference is seen waiting."""
_TIMEOUT_S = 120.0
_POLL_S = 0.1


def show_residency(
    yard: Modelyard,
    progress: Progress,
    model: Mapping[str, Any],
    request: Any,  # noqa: ANN401
) -> bool:
    """Let three jobs of `model` take turns with `request`; return whether all went as it should."""
    progress.say("\nThree models of 16 GiB share two devices of 24 GiB, loaded on demand:\n")
    for job in JOBS:
        entry = {
            **model,
            "name": f"{job}-model",
            "resources": {"cpus": 1, "memory": "512m", "gpus": 1, "gpu_memory": "16g"},
            "residency": {"on_demand": True, "min_resident_s": _MIN_RESIDENT_S},
        }
        yard.put_model(entry)
        yard.wait(yard.create(job, entry["name"]), _TIMEOUT_S)
    for job in JOBS[:2]:
        yard.wait(yard.infer(job, request), _TIMEOUT_S)
    asked = yard.infer(JOBS[2], request)
    why = _explanation_of_its_load(yard, asked.operation_id)
    if why is not None:
        progress.say(f"$ modelyard explain {why.operation_id}")
        for sentence in why.reasons[:1]:
            progress.say(sentence)
        for host in why.hosts:
            for holder in host.holders:
                progress.say(f"  {holder.job_id}: {holder.stays or 'makes room'}")
    ended = yard.wait(asked, _TIMEOUT_S)
    operations = [one for job in JOBS for one in yard.operations(job_id=job).operations]
    decided = _decided_by_modelyard(operations)
    progress.say("What Modelyard decided by itself:")
    progress.console.print(decisions(decided, operations))
    for job in JOBS:
        yard.wait(yard.terminate(job), _TIMEOUT_S)
    evicted = any(SystemReason.EVICTED_FOR.gave(one.reason) for one in decided)
    return why is not None and evicted and ended.state is OperationState.SUCCEEDED


def _explanation_of_its_load(yard: Modelyard, operation_id: str) -> Explanation | None:
    """Return why the model of an inference can't be loaded yet; None if it is not seen waiting."""
    deadline = time.monotonic() + _MIN_RESIDENT_S
    while time.monotonic() < deadline:
        load = yard.explain(operation_id).next_in_line
        if load is not None:
            found = yard.explain(load)
            if found.state is OperationState.QUEUED and found.hosts:
                return found
        time.sleep(_POLL_S)
    return None


def _decided_by_modelyard(operations: Sequence[OperationView]) -> list[OperationView]:
    found = [one for one in operations if one.source == "system"]
    return sorted(found, key=lambda one: str(one.started_at))


def decisions(decided: Sequence[OperationView], operations: Sequence[OperationView]) -> Table:
    """Return a table of what Modelyard decided and for which of the operations it did."""
    known = {one.operation_id: f"{one.operation_type} of {one.job_id}" for one in operations}
    rows = Table()
    for name in ("decided", "job", "because", "state"):
        rows.add_column(name, no_wrap=True)
    for one in decided:
        kind, _, operation_id = (one.reason or "").partition(":")
        because = f"{kind}: {known.get(operation_id, operation_id)}" if operation_id else kind
        rows.add_row(one.operation_type or "", one.job_id, because, one.state)
    return rows
