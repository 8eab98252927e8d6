"""The tables of `make demo` on a terminal of 80 columns, and in a pipe, which has as many."""

import io

from rich.console import Console
from rich.table import Table

from deploy.local.demo import Step, table
from deploy.local.residency_demo import decisions
from modelyard.contract.states import OperationState, Verb
from modelyard.contract.views import Links, OperationView


def operation(number: int, verb: Verb, job_id: str, **more: object) -> OperationView:
    fields = {
        "operation_id": f"0189{number:04}-0000-7000-8000-000000000000",
        "job_id": job_id,
        "operation_type": verb,
        "state": OperationState.SUCCEEDED,
        "links": Links(self="/"),
        "container_id": "4695c5aadf76f34488b1dbe2d9b7659d",
        "host_id": "demo-s33a9ab8b",
        **more,
    }
    return OperationView.model_validate(fields)


def printed(rows: Table) -> str:
    text = io.StringIO()
    Console(file=text, width=80).print(rows)
    return text.getvalue()


def test_no_verb_and_no_state_is_cut_off() -> None:
    steps = [
        Step(verb, "x", operation(1, verb, "demo-1"), "541 of 550 digits right (98.4%)")
        for verb in Verb
    ]
    shown = printed(table(steps))
    assert "…" not in shown
    assert all(verb in shown for verb in Verb)


def test_a_decision_names_the_job_for_which_it_was_made() -> None:
    load = operation(1, Verb.DEPLOY_LOAD, "shared-c")
    evicted = operation(
        2, Verb.DEPLOY_UNLOAD, "shared-a", reason=f"evicted_for:{load.operation_id}"
    )
    shown = printed(decisions([evicted], [load, evicted]))
    assert "…" not in shown
    assert "evicted_for: DEPLOY_LOAD of shared-c" in shown
