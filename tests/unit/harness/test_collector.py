"""The collector: what containers tell it, and which runs overlap."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from deploy.local.ports import LOOPBACK, free_port
from tests.support.invariants.collector import Collector, Run
from tests.support.waiting import eventually


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with Collector(LOOPBACK, free_port()) as made:
        yield made


class Container:
    def __init__(self, collector: Collector, name: str) -> None:
        self._collector = collector
        self._name = name
        self._writer: asyncio.StreamWriter | None = None

    async def say(self, event: str, **more: object) -> None:
        if self._writer is None:
            host, port = self._collector.address.split(":")
            _, self._writer = await asyncio.open_connection(host, int(port))
        before = self._collector.lines
        line = {"event": event, "container": self._name, "tag": "", **more}
        self._writer.write(json.dumps(line).encode() + b"\n")

        async def heard() -> bool:
            return self._collector.lines > before

        await eventually(heard)

    async def die(self) -> None:
        assert self._writer is not None
        self._writer.close()
        await self._writer.wait_closed()


async def ended(run: Run) -> None:
    async def it_has() -> bool:
        return run.ended is not None

    await eventually(it_has)


async def test_an_inference_is_a_run_named_by_its_input(collector: Collector) -> None:
    container = Container(collector, "c1")
    await container.say("start", mode="http")
    assert collector.runs == []
    await container.say("infer_start", input_tag="op-1")
    await container.say("infer_stop", input_tag="op-1")
    (run,) = collector.of("op-1")
    assert run.container == "c1"
    assert run.ended is not None
    assert run.ended > run.began


async def test_a_batch_program_is_a_run_named_by_its_tag(collector: Collector) -> None:
    container = Container(collector, "c1")
    await container.say("start", mode="batch", tag="op-1")
    await container.say("stop", tag="op-1", code=0)
    assert collector.of("op-1")[0].ended is not None


async def test_runs_one_after_the_other_do_not_overlap(collector: Collector) -> None:
    for name in ("c1", "c2"):
        container = Container(collector, name)
        await container.say("infer_start", input_tag="op-1")
        await container.say("infer_stop", input_tag="op-1")
    assert len(collector.of("op-1")) == 2
    assert collector.overlaps() == []


async def test_runs_of_one_operation_at_the_same_time_are_found(collector: Collector) -> None:
    first, second = Container(collector, "c1"), Container(collector, "c2")
    await first.say("infer_start", input_tag="op-1")
    await second.say("infer_start", input_tag="op-1")
    await second.say("infer_start", input_tag="op-2")
    await first.say("infer_stop", input_tag="op-1")
    ((one, other),) = collector.overlaps()
    assert (one.container, other.container) == ("c1", "c2")


async def test_the_end_of_its_connection_is_the_end_of_a_run(collector: Collector) -> None:
    first = Container(collector, "c1")
    await first.say("infer_start", input_tag="op-1")
    await first.die()
    await ended(collector.of("op-1")[0])
    await Container(collector, "c2").say("infer_start", input_tag="op-1")
    assert collector.overlaps() == []


async def test_a_run_that_was_never_ended_counts_until_it_was_last_heard_of(
    collector: Collector,
) -> None:
    first, second = Container(collector, "c1"), Container(collector, "c2")
    await first.say("infer_start", input_tag="op-1")
    await second.say("infer_start", input_tag="op-1")
    assert collector.overlaps() == []
    await first.say("tick")
    assert len(collector.overlaps()) == 1
