"""The stack of `make up`: it runs in the background until `make down`.

Others may run beside it, each with a name, folders and servers of its own.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from deploy.local import signals
from deploy.local.layout import Given
from deploy.local.locks import exclusive
from deploy.local.samples import provide_samples
from deploy.local.services import gateway_ready
from deploy.local.stack import LocalStack
from deploy.local.state import State

if TYPE_CHECKING:
    from pathlib import Path

    from deploy.local.caller_settings import CallerSettings
    from deploy.local.layout import Layout
    from deploy.local.progress import Progress


def up(
    layout: Layout, given: Given, progress: Progress, settings: CallerSettings | None = None
) -> State:
    """Start the stack, unless it is up, and leave it running. Raises `StackError`."""
    with exclusive(_lock(layout)), signals.raised(), ExitStack() as undo:
        state = State.load(layout.home)
        if state and state.alive and gateway_ready(state.endpoints.url):
            progress.say(
                f"The stack is already up, with the settings of its start: {state.endpoints.url}"
            )
            return state
        _stop(layout, state)
        stack = LocalStack(layout, given, progress=progress, settings=settings)
        stack.start()
        undo.callback(State.forget, layout.home)
        undo.callback(stack.stop)
        with progress.step("Sample catalog") as step:
            step.result = provide_samples(stack.endpoints.url, stack.api_key, layout.datasets)
        state = stack.state
        state.save(layout.home)
        stack.release()
        undo.pop_all()
        return state


def down(layout: Layout, progress: Progress) -> None:
    """Stop the stack, and remove what a crashed one may have left."""
    title = f"Stopping the stack {layout.name}".rstrip()
    with exclusive(_lock(layout)), progress.step(title) as step:
        state = State.load(layout.home)
        _stop(layout, state)
        named = f"stack {layout.name}".rstrip()
        step.result = f"The {named} is down" if state else f"No {named} was up"


def _stop(layout: Layout, state: State | None) -> None:
    own_engine = LocalStack(layout).servers.docker.url
    foreign = state.endpoints.docker_host if state else own_engine
    given = Given(docker_host=foreign if foreign != own_engine else None)
    LocalStack(layout, given, host_id=state.host_id if state else None).stop()
    State.forget(layout.home)


def _lock(layout: Layout) -> Path:
    return layout.home / "stack.lock"
