"""What a request does with a part that is down: nothing, at once."""

import asyncio

import pytest

from gateway import availability
from gateway.availability import Availability, Condition
from modelyard.contract.errors import StoreUnavailableError


class Part:
    """Something that answers, refuses or hangs, as the test says."""

    def __init__(self) -> None:
        self.answers = True
        self.probes = 0
        self.probed = asyncio.Event()
        self.availability = Availability("part", self.probe, StoreUnavailableError)

    async def probe(self) -> None:
        self.probes += 1
        self.probed.set()
        await self.call()

    async def call(self) -> str:
        if not self.answers:
            raise StoreUnavailableError("10.0.0.1:27017 is down")
        return "answer"

    async def hang(self) -> str:
        await asyncio.Event().wait()
        return "never"


@pytest.fixture
async def part() -> Part:
    return Part()


async def test_a_call_goes_through_while_nothing_is_known(part: Part) -> None:
    assert await part.availability.ask(part.call, within_s=1) == "answer"


async def test_a_call_that_takes_too_long_marks_the_part_down(part: Part) -> None:
    with pytest.raises(StoreUnavailableError):
        await part.availability.ask(part.hang, within_s=0.01)
    assert part.availability.down


async def test_a_call_that_may_take_long_says_nothing_of_the_part_by_its_time(part: Part) -> None:
    with pytest.raises(StoreUnavailableError, match="took too long"):
        await part.availability.ask(part.hang, within_s=0.01, may_be_slow=True)
    assert not part.availability.down
    part.answers = False
    with pytest.raises(StoreUnavailableError):
        await part.availability.ask(part.call, within_s=1, may_be_slow=True)
    assert part.availability.down


async def test_a_part_that_is_down_is_not_asked(part: Part) -> None:
    part.availability.failed("a test says so")
    called = False

    async def call() -> None:
        nonlocal called
        called = True

    with pytest.raises(StoreUnavailableError):
        await part.availability.ask(call, within_s=1)
    assert not called


async def test_the_error_for_clients_names_no_address(part: Part) -> None:
    part.answers = False
    with pytest.raises(StoreUnavailableError) as caught:
        await part.availability.ask(part.call, within_s=1)
    assert "10.0.0.1" not in str(caught.value)


async def test_other_errors_say_nothing_of_the_part(part: Part) -> None:
    async def call() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await part.availability.ask(call, within_s=1)
    assert not part.availability.down


async def test_only_a_probe_brings_it_back(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "PROBE_MOST_S", 0.01)
    part.answers = False
    watching = asyncio.create_task(part.availability.watch())
    await part.probed.wait()
    assert part.availability.down
    part.answers = True
    part.probed.clear()
    async with asyncio.timeout(5):
        await part.probed.wait()
    await asyncio.sleep(0)  # the watch goes on from its probe
    assert part.availability.condition is Condition.UP
    part.probed.clear()
    part.availability.failed("again")
    async with asyncio.timeout(5):
        await part.probed.wait()
    watching.cancel()


async def test_a_probe_that_fails_otherwise_ends_the_watch_loudly() -> None:
    async def probe() -> None:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        await Availability("part", probe, StoreUnavailableError).watch()


async def test_a_check_asks_unless_it_is_known_to_be_down(part: Part) -> None:
    async def ping() -> None:
        await part.call()

    assert await part.availability.check(ping, within_s=1) is Condition.UP
    part.answers = False
    assert await part.availability.check(ping, within_s=1) is Condition.DOWN
    part.answers = True
    assert await part.availability.check(ping, within_s=1) is Condition.DOWN
