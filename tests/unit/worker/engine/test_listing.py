"""Listing and stopping a host's containers while the engine is stuck with some of them."""

import asyncio
from collections.abc import Callable

import pytest

from modelyard.contract.states import Verb
from tests.fakes.runtime import FakeRuntime
from tests.support.worker.harness import VerbHarness, model
from worker.engine import listing
from worker.engine.listing import list_containers
from worker.engine.protocol import ContainerFacts, EngineUnavailableError
from worker.engine.strict_containers import STOPS_AT_ONCE, stop_all, strict_containers

STUCK = "modelyard-job-1-1"


async def host_with(jobs: int) -> VerbHarness:
    harness = VerbHarness(model(on_host_lost="recreate"))
    for number in range(1, jobs + 1):
        await harness.do(Verb.DEPLOY_CREATE, job=f"job-{number}")
    return harness


def stuck_at_inspecting(runtime: FakeRuntime, fails: Callable[[], object]) -> None:
    """Have the engine not inspect one container: it works on it, and holds its lock."""
    really = runtime.inspect

    async def inspect(ref: str) -> ContainerFacts:
        if ref in {STUCK, runtime.named(STUCK).id}:
            fails()
            await asyncio.Event().wait()
        return await really(ref)

    runtime.inspect = inspect  # type: ignore[method-assign]


def unavailable() -> None:
    raise EngineUnavailableError("Docker did not answer within 30 s.")


@pytest.mark.parametrize("fails", [lambda: None, unavailable])
async def test_a_container_that_can_not_be_inspected_is_listed_with_all_others(
    monkeypatch: pytest.MonkeyPatch, fails: Callable[[], object]
) -> None:
    monkeypatch.setattr(listing, "INSPECT_S", 0.1)
    runtime = (await host_with(3)).runtime
    stuck_at_inspecting(runtime, fails)
    found = {facts.name: facts for facts in await list_containers(runtime)}
    assert sorted(found) == [STUCK, "modelyard-job-2-1", "modelyard-job-3-1"]
    assert found[STUCK].running
    assert found[STUCK].mounts == ()  # the list has none
    assert found["modelyard-job-2-1"].mounts != ()


async def test_a_container_that_went_while_the_others_were_inspected_is_not_listed() -> None:
    runtime = (await host_with(2)).runtime
    really = runtime.inspect

    async def inspect(ref: str) -> ContainerFacts:
        if STUCK in {one.name for one in runtime.containers.values()}:
            await runtime.remove(runtime.named(STUCK).id)
        return await really(ref)

    runtime.inspect = inspect  # type: ignore[method-assign]
    assert [facts.name for facts in await list_containers(runtime)] == ["modelyard-job-2-1"]


async def test_an_engine_that_is_away_lists_nothing() -> None:
    runtime = (await host_with(1)).runtime
    runtime.available = False
    with pytest.raises(EngineUnavailableError):
        await list_containers(runtime)


async def test_what_can_not_be_inspected_hides_no_strict_container() -> None:
    runtime = (await host_with(2)).runtime
    stuck_at_inspecting(runtime, unavailable)
    assert [facts.name for facts in await strict_containers(runtime)] == [
        STUCK,
        "modelyard-job-2-1",
    ]


async def test_all_are_stopped_although_some_hang() -> None:
    runtime = (await host_with(3)).runtime
    others_stopped = asyncio.Event()

    async def stop(facts: ContainerFacts) -> None:
        if facts.name == STUCK:
            await others_stopped.wait()
        await runtime.stop(facts.id, 0.0)
        if sum(one.running for one in runtime.containers.values()) == 1:
            others_stopped.set()

    async with asyncio.timeout(5):
        await stop_all(await strict_containers(runtime), stop)
    assert not any(one.running for one in runtime.containers.values())


async def test_only_so_many_are_stopped_at_once() -> None:
    runtime = (await host_with(1)).runtime
    [one] = await strict_containers(runtime)
    now = most = 0

    async def stop(_: ContainerFacts) -> None:
        nonlocal now, most
        now, most = now + 1, max(most, now + 1)
        await asyncio.sleep(0)
        now -= 1

    await stop_all([one] * (STOPS_AT_ONCE + 5), stop)
    assert most == STOPS_AT_ONCE


async def test_an_error_is_raised_once_all_were_tried() -> None:
    runtime = (await host_with(3)).runtime

    async def stop(facts: ContainerFacts) -> None:
        if facts.name == STUCK:
            raise EngineUnavailableError("did not receive an exit event")
        await runtime.stop(facts.id, 0.0)

    with pytest.raises(EngineUnavailableError, match="exit event"):
        await stop_all(await strict_containers(runtime), stop)
    assert [one.name for one in runtime.containers.values() if one.running] == [STUCK]


async def test_a_lost_lease_stops_all_strict_containers_but_the_one_that_is_stuck() -> None:
    harness = await host_with(3)
    runtime = harness.runtime
    really = runtime.stop

    async def stop(container_id: str, grace_s: float) -> None:
        if runtime.containers[container_id].name == STUCK:
            raise EngineUnavailableError("did not receive an exit event")
        await really(container_id, grace_s)

    runtime.stop = stop  # type: ignore[method-assign]
    stuck_at_inspecting(runtime, unavailable)
    await harness.operations.give_up([])
    assert [one.name for one in runtime.containers.values() if one.running] == [STUCK]
