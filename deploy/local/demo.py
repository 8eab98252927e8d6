"""`make demo`: the original system's five calls and an inference, on a private stack.

The first call creates a container. The calls that follow have its id, as the original's users
pasted it. They are sent at once, and run in their order because they belong to one job. In addition
to what the original's clients send, each has an API key, because this gateway requires one. The
exit status is 0 only if every state, the predicted digit and the accuracy on the held-out digits
are right. In a second act three models share two devices (`residency_demo`).
"""

from __future__ import annotations

import csv
import os
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx2
from rich.live import Live
from rich.table import Table

from deploy.local.caller_settings import CallerSettings
from deploy.local.layout import Given
from deploy.local.progress import Progress
from deploy.local.residency_demo import show_residency
from deploy.local.samples import DIGITS_DATASET, DIGITS_MODEL, MODEL
from deploy.local.stack import LocalStack
from modelyard.client import Modelyard
from modelyard.contract.states import OperationState, Verb

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from modelyard.contract.views import OperationView

JOB = "demo-1"
CONTAINER_OF_NOTHING = {Verb.DEPLOY_CREATE: "aa", Verb.TEMP: "ASDF"}
"""What the original's clients send as container id before there is a container; it is ignored."""
LATER_CALLS = (
    Verb.DEPLOY_LOAD,
    Verb.INFER,
    Verb.DEPLOY_UNLOAD,
    Verb.TERMINATE,
    Verb.TEMP,
)
_TIMEOUT_S = 180.0
_POLL_S = 0.1
_GOOD_ACCURACY = 0.95
_UNAUTHENTICATED = 401
_COLORS = {
    OperationState.SUCCEEDED: "green",
    OperationState.RUNNING: "cyan",
    OperationState.DISPATCHED: "cyan",
    OperationState.QUEUED: "dim",
}


@dataclass(frozen=True)
class Digit:
    """One held-out digit: its 64 pixels, and the digit that they show."""

    pixels: list[float]
    label: int

    def request(self) -> dict[str, Any]:
        """Return the input for its inference in the Open Inference Protocol."""
        tensor = {"name": "pixels", "shape": [1, 64], "datatype": "FP64", "data": self.pixels}
        return {"inputs": [tensor]}


@dataclass
class Step:
    """One call of the demonstration, with its operation and its outcome so far."""

    verb: Verb
    operation_id: str
    view: OperationView | None = None
    answer: str = ""
    right: bool = False

    @property
    def ended(self) -> bool:
        return self.view is not None and self.view.state.terminal


def main() -> int:
    """Run the demonstration; return the exit status."""
    progress, given = Progress(), Given.by(os.environ)
    settings = CallerSettings.by(os.environ).with_(MODELYARD_AUTH="keys")
    with LocalStack.private(given, progress, settings) as stack:
        folder = stack.layout.datasets / DIGITS_DATASET
        digits = read_digits(folder)
        key = stack.api_key or ""
        with Modelyard(stack.endpoints.url, api_key=key) as yard:
            register(yard, folder)
            with caller(stack.endpoints.url, key) as http:
                steps = [send(http, Verb.DEPLOY_CREATE)]
                progress.say(f"\nSent the first request for job {JOB}:\n")
                watch(yard, steps, progress)
                container_id = (steps[0].view and steps[0].view.container_id) or ""
                steps += [send(http, verb, container_id, digits[0]) for verb in LATER_CALLS]
            progress.say(f"\nSent the other {len(LATER_CALLS)} at once, with the container's id:\n")
            watch(yard, steps, progress)
            check(yard, steps, digits)
            progress.console.print(table(steps))
            wrong: list[str] = [step.verb for step in steps if not step.right]
            if given.docker_host is not None:
                progress.say("Your engine may not bind declared devices: no second act.")
            elif not show_residency(yard, progress, DIGITS_MODEL, digits[0].request()):
                wrong.append("the second act")
    if wrong:
        progress.say(f"Wrong: {', '.join(wrong)}")
        return 1
    progress.say("All results are right. Next: make up, and the README.")
    return 0


def read_digits(folder: Path) -> list[Digit]:
    """Read the held-out digits: 64 pixels and a label a line, after a line of names."""
    with (folder / "held_out.csv").open(newline="") as file:
        rows = [row for row in csv.reader(file) if row and row[-1].isdigit()]
    return [Digit([float(value) for value in row[:64]], int(row[-1])) for row in rows]


def register(yard: Modelyard, folder: Path) -> None:
    """Put the model and its dataset into the catalog."""
    yard.put_model(DIGITS_MODEL)
    yard.put_dataset({"name": DIGITS_DATASET, "path": str(folder)})


def caller(url: str, key: str) -> httpx2.Client:
    """Return a client with a key; raises `RuntimeError` if the gateway accepts calls without."""
    if httpx2.post(f"{url}/inference_router/", trust_env=False).status_code != _UNAUTHENTICATED:
        raise RuntimeError("The gateway accepts calls without an API key.")
    headers = {"Authorization": f"Bearer {key}"}
    return httpx2.Client(base_url=url, headers=headers, trust_env=False)


def send(
    http: httpx2.Client, verb: Verb, container_id: str = "", digit: Digit | None = None
) -> Step:
    """Send a call as the original system's clients do; INFER has an input in addition."""
    body: dict[str, Any] = {
        "job_id": JOB,
        "model": MODEL,
        "dataset": DIGITS_DATASET,
        "operation_type": verb,
        "container_id": CONTAINER_OF_NOTHING.get(verb, container_id),
    }
    if verb is Verb.INFER and digit is not None:
        body["input"] = digit.request()
    answer = http.post("/inference_router/", json=body).raise_for_status()
    return Step(verb, answer.json()["operation_id"])


def watch(yard: Modelyard, steps: Sequence[Step], progress: Progress) -> None:
    """Follow the operations until all have ended, or for three minutes."""
    console = progress.console
    live = Live(table(steps), console=console, transient=True) if console.is_terminal else None
    deadline = time.monotonic() + _TIMEOUT_S
    with live or nullcontext():
        while not all(step.ended for step in steps) and time.monotonic() < deadline:
            for step in steps:
                if not step.ended:
                    before = _state(step)
                    step.view = yard.operation(step.operation_id)
                    if live is None and _state(step) != before:
                        progress.say(f"  {step.verb:<14} {_state(step)}")
            if live is not None:
                live.update(table(steps))
            time.sleep(_POLL_S)


def check(yard: Modelyard, steps: Sequence[Step], digits: Sequence[Digit]) -> None:
    """Check the final state of every operation, and the answers of the model."""
    for step in steps:
        if step.view is None or step.view.state is not OperationState.SUCCEEDED:
            step.answer = step.view.error.message if step.view and step.view.error else "no end"
            continue
        step.right = True
        if step.verb is Verb.INFER:
            predicted = _output(yard.result(step.operation_id), "label")[0]
            step.right = predicted == digits[0].label
            step.answer = f"digit {predicted} (it is {digits[0].label})"
        elif step.verb is Verb.TEMP:
            labels = _output(yard.result(step.operation_id), "label")
            hits = sum(
                predicted == digit.label for predicted, digit in zip(labels, digits, strict=True)
            )
            accuracy = hits / len(digits)
            step.right = accuracy > _GOOD_ACCURACY
            step.answer = f"{hits} of {len(digits)} digits right ({accuracy:.1%})"


def table(steps: Sequence[Step]) -> Table:
    """Return a table of the calls and their outcomes so far, which fits into 80 columns."""
    rows = Table()
    for name in ("verb", "state", "container", "time"):
        rows.add_column(name, no_wrap=True)
    rows.add_column("answer")
    for step in steps:
        view = step.view
        color = _COLORS.get(view.state, "red") if view else "dim"
        rows.add_row(
            step.verb,
            f"[{color}]{_state(step)}[/{color}]",
            (view.container_id or "")[:12] if view else "",
            _seconds(view) if view else "",
            step.answer,
        )
    return rows


def _state(step: Step) -> str:
    if step.view is None:
        return "SENT"
    phase = step.view.phase
    return f"{step.view.state} ({phase})" if phase and not step.ended else step.view.state


def _seconds(view: OperationView) -> str:
    if view.started_at is None or view.finished_at is None:
        return ""
    return f"{(view.finished_at - view.started_at).total_seconds():.2f} s"


def _output(answer: Any, name: str) -> list[int]:  # noqa: ANN401 - JSON of a model
    found: list[int] = next(one for one in answer["outputs"] if one["name"] == name)["data"]
    return found
