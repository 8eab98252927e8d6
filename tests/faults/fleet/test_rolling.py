"""1,000 operations while everything that carries them is killed in turn."""

import asyncio
import contextlib
import random
import sys
import time

import pytest

from modelyard.contract.states import TERMINAL_STATES
from tests.faults.harness.checked_fleet import CheckedFleet
from tests.faults.harness.load import Mix
from tests.faults.harness.nemesis import IN_TURN, Nemesis
from tests.faults.table import ROLLING
from tests.support.waiting import eventually

MIX = Mix(jobs=40, infers=18, temps=70, batches=50, infer_s=0.05, batch_s=0.2)
RAGE_S = 300
MOST = 0.9
SEED = 11


@pytest.mark.faults
@pytest.mark.timeout(1_500)
@pytest.mark.fault(ROLLING)
async def test_a_thousand_operations_survive_the_killing_of_everything_in_turn(
    fleet: CheckedFleet, capsys: pytest.CaptureFixture[str]
) -> None:
    assert MIX.operations == 1_000

    def say(line: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{line}")

    load = await fleet.load(MIX, choice=random.Random(SEED), pause_s=0.5, one_door=True)
    nemesis = Nemesis(fleet, random.Random(SEED), say)
    began = time.monotonic()
    loading = asyncio.create_task(load.run())
    nearly_done = asyncio.create_task(_most_ended(fleet, loading))
    await nemesis.each_in_turn(IN_TURN, until=nearly_done)
    await nearly_done
    ids = await loading
    raged_s = time.monotonic() - began
    await fleet.holds()
    states = await fleet.states(ids)
    say(
        f"accepted {len(ids)} with {fleet.doors.retries} retries; {len(nemesis.done)} kills in "
        f"{raged_s:.0f} s; terminal {sum(states[one] for one in TERMINAL_STATES)} "
        f"({dict(states)}); quiet after {fleet.invariants.healed_s or 0:.0f} s; "
        f"{len(fleet.collector.runs)} runs, {len(fleet.collector.overlaps())} overlaps\n"
    )
    assert len(ids) == MIX.operations


async def _most_ended(fleet: CheckedFleet, loading: asyncio.Task[list[str]]) -> None:
    """Return once all is accepted and most of it has ended, or after the time for kills."""
    ids = await loading

    async def most() -> bool:
        states = await fleet.states(ids)
        return sum(states[one] for one in TERMINAL_STATES) >= MOST * len(ids)

    with contextlib.suppress(AssertionError):
        await eventually(most, within_s=RAGE_S)
