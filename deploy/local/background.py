"""The stack of `make up`: it runs in the background until `make down`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from deploy.local import signals
from deploy.local.layout import Given, Layout
from deploy.local.locks import exclusive
from deploy.local.ports import free_port, is_free
from deploy.local.services import gateway_ready
from deploy.local.stack import LocalStack
from deploy.local.state import State

if TYPE_CHECKING:
    from pathlib import Path

    from deploy.local.progress import Progress

GATEWAY_PORT = 8080


def up(root: Path, given: Given, progress: Progress) -> State:
    """Start the stack, unless it is up, and leave it running. Raises `StackError`."""
    with exclusive(_lock(root)), signals.raised(), ExitStack() as undo:
        state = State.load(root)
        if state and state.alive and gateway_ready(state.endpoints.url):
            progress.say(f"The stack is already up: {state.endpoints.url}")
            return state
        _stop(root, state)
        port = GATEWAY_PORT if is_free(GATEWAY_PORT) else free_port()
        stack = LocalStack(Layout.background(root), given, port=port, progress=progress)
        stack.start()
        undo.callback(_stop, root, None)
        state = State.of(stack.endpoints, stack.daemons())
        state.save(root)
        stack.release()
        undo.pop_all()
        return state


def down(root: Path, progress: Progress) -> None:
    """Stop the stack, and remove what a crashed one may have left."""
    with exclusive(_lock(root)), progress.step("Stopping the stack") as step:
        state = State.load(root)
        _stop(root, state)
        step.result = "The stack is down" if state else "No stack was up"


def _stop(root: Path, state: State | None) -> None:
    layout = Layout.background(root)
    own_engine = LocalStack(layout).servers.docker.url
    foreign = state.endpoints.docker_host if state else own_engine
    given = Given(docker_host=foreign if foreign != own_engine else None)
    LocalStack(layout, given).stop()
    State.forget(root)


def _lock(root: Path) -> Path:
    return root / "var" / "stack.lock"
