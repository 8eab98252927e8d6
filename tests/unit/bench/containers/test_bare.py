"""The bare loop makes the calls that a worker makes, and only those."""

import asyncio
from typing import Any

import pytest

from bench.containers.bare import CREATE, TEMP, TERMINATE, BareContainer
from bench.containers.rounds import BATCH_MODEL, SERVER_MODEL
from modelyard.contract.catalog.entries import ModelSpec
from modelyard.contract.states import OperationState, Verb
from tests.fakes.programs import FakeBatch
from tests.fakes.runtime import FakeRuntime
from tests.support.worker.harness import IMAGE, VerbHarness


class NotedRuntime:
    """Notes which coroutine methods of a fake engine are called."""

    def __init__(self, runtime: FakeRuntime) -> None:
        self.calls: list[str] = []
        self._runtime = runtime

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._runtime, name)
        if not asyncio.iscoroutinefunction(method):
            return method

        async def noted(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            return await method(*args, **kwargs)

        return noted


async def calls_of(spec: ModelSpec, *verbs: Verb) -> list[tuple[str, ...]]:
    """Return the calls to the engine that a worker makes for these verbs of a job."""
    harness = VerbHarness(spec.model_copy(update={"image": IMAGE}), FakeBatch(stdout="null\n"))
    noted = NotedRuntime(harness.runtime)
    harness.runtime = noted  # type: ignore[assignment]
    harness.restarted()
    found = []
    for verb in verbs:
        noted.calls.clear()
        ended = await harness.do(verb)
        assert ended.state is OperationState.SUCCEEDED, ended.error
        found.append(tuple(noted.calls))
    return found


async def test_a_bare_temp_makes_the_calls_of_a_worker() -> None:
    assert await calls_of(BATCH_MODEL, Verb.TEMP) == [TEMP]


async def test_a_bare_create_and_terminate_make_the_calls_of_a_worker() -> None:
    found = await calls_of(SERVER_MODEL, Verb.DEPLOY_CREATE, Verb.TERMINATE)
    assert found == [CREATE, TERMINATE]


@pytest.mark.parametrize("step", sorted({*TEMP, *CREATE, *TERMINATE}))
def test_there_is_a_method_for_each_step(step: str) -> None:
    assert callable(getattr(BareContainer, f"_{step}"))
