"""Which measurements are sampled, on a stack that only notes what is asked of it."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from bench import measuring
from bench.measuring import Measuring
from deploy.local.processes import ProcessId

OPERATIONS = 500


class Dispatcher:
    """Notes whether it is paused."""

    paused = False

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False


class NotingStack:
    """Notes which loads are sampled; it is its own services too."""

    def __init__(self) -> None:
        self.services = self
        self.dispatcher = Dispatcher()
        self.sampled: list[str] = []

    def processes(self) -> dict[str, set[ProcessId]]:
        return {}

    @asynccontextmanager
    async def sampling(self, load: str) -> AsyncIterator[None]:
        self.sampled.append(load)
        yield


class Submitting:
    """A gateway, a bare endpoint's client and its daemon: everything is accepted at once."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.service = self.daemon = self.client = self
        self.while_paused: list[bool] = []
        self._dispatcher = dispatcher

    def family(self) -> set[ProcessId]:
        return set()

    async def submit_singles(self, _operations: int) -> float:
        self.while_paused.append(self._dispatcher.paused)
        return 1.0


@pytest.fixture(autouse=True)
def all_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has to end in the database."""

    async def at_once(*_: object) -> float:
        return time.monotonic()

    monkeypatch.setattr(measuring, "until_ended", at_once)


async def test_nothing_is_sampled_while_the_dispatcher_is_paused() -> None:
    """To attach takes seconds, and a dispatcher that is paused for so long may lose its term."""
    stack = NotingStack()
    gateway = Submitting(stack.dispatcher)
    measured = Measuring(
        *cast("tuple[Any, Any, Any, Any, Any]", (stack, gateway, None, (), gateway))
    )
    measured.begin()

    await measured.accepted(OPERATIONS)
    await measured.singles(OPERATIONS)

    assert gateway.while_paused == [True, False]
    assert stack.sampled == ["singles"]
