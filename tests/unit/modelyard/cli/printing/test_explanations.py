"""An explanation in words: what is before it, when it starts, and who holds what it lacks."""

import pytest

from modelyard.cli.printing.output import Output
from modelyard.contract.states import OperationState
from modelyard.contract.views import Explanation, HolderView, HostVerdict

GIB = 1 << 30


def test_who_holds_what_it_lacks_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    model = HolderView(job_id="chat", model="llama", frees={"GPU-a": 4 * GIB, "memory": GIB})
    container = HolderView(
        job_id="batch-1", frees={"memory": 2 * GIB}, cpus=1.5, slots=1, stays="it ends by itself"
    )
    verdict = HostVerdict(
        host_id="h1", fits=False, refusal="it lacks room", holders=(model, container)
    )
    found = Explanation(
        operation_id="o",
        state=OperationState.QUEUED,
        reasons=("It waits.",),
        ahead_in_waiting_room=2,
        hosts=(verdict,),
        estimated_start_s=41.2,
    )
    Output(as_json=False).explanation(found)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "It waits.",
        "More urgent operations that wait for room: 2.",
        "It starts in about 41.2 s.",
        "",
        "host  why not",
        "h1    it lacks room",
        "",
        "host  held by  model  would free                      stays because",
        "h1    chat     llama  GPU-a 4 GiB, memory 1 GiB       makes room",
        "h1    batch-1         memory 2 GiB, 1.5 CPUs, 1 slot  it ends by itself",
    ]
