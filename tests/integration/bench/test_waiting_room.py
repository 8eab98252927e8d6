"""Copies of waiting operations are what intake and scheduler would have recorded."""

import asyncio
from collections import Counter

from bench.scale.waiting_room import ORIGINALS, WaitingRoom, originals
from modelyard.contract.ids import new_operation_id
from modelyard.contract.states import OperationState, Verb
from modelyard.store import Store
from modelyard.store.records import NewOperation, OperationRecord

REASON = ("no host has a free slot",)
DIFFERS = {"operation_id", "job_id", "line", "accepted_at"}


async def record_originals(store: Store) -> None:
    """Record what waits as intake does, with the reasons that the scheduler gives."""
    new = [NewOperation.of(new_operation_id(), one, "amqp") for one in originals()]
    positions = await store.operations.next_positions(len(new))
    await store.jobs.ensure(one.job_id for one in new if one.job_id)
    await store.operations.take_in(list(zip(new, positions, strict=True)))
    temps = [one.operation_id for one in new if one.verb is Verb.TEMP]
    await store.operations.explain_waiting(dict.fromkeys(temps, REASON))


async def all_waiting(store: Store) -> list[OperationRecord]:
    return await store.operation_queries.waiting(after=None, limit=0)


async def test_copies_differ_from_their_originals_in_id_job_and_position_only(
    store: Store, mongo_url: str
) -> None:
    await record_originals(store)
    before = await all_waiting(store)
    room, notes = WaitingRoom(mongo_url), list[str]()

    await asyncio.to_thread(room.fill, 3 * ORIGINALS, notes.append)

    everyone = await all_waiting(store)
    copies = everyone[ORIGINALS:]
    assert everyone[:ORIGINALS] == before
    assert room.waiting == len(everyone) == 3 * ORIGINALS
    for original, copy in zip(before, copies[:ORIGINALS], strict=True):
        assert copy.model_dump(exclude=DIFFERS) == original.model_dump(exclude=DIFFERS)
    assert len({one.line for one in everyone}) == len(everyone)
    assert notes == ["3,000 wait"]


async def test_each_temp_has_a_job_of_its_own_and_inferences_share_their_lines(
    store: Store, mongo_url: str
) -> None:
    await record_originals(store)

    await asyncio.to_thread(WaitingRoom(mongo_url).fill, 2 * ORIGINALS, lambda _: None)

    everyone = await all_waiting(store)
    jobs = {verb: Counter(one.job_id for one in everyone if one.verb is verb) for verb in Verb}
    assert set(jobs[Verb.TEMP].values()) == {1}
    assert set(jobs[Verb.INFER].values()) == {10}
    known = await store.jobs.get_many([job for job in jobs[Verb.TEMP] if job])
    assert known.keys() == jobs[Verb.TEMP].keys()


async def test_a_new_operation_comes_after_all_copies(store: Store, mongo_url: str) -> None:
    await record_originals(store)
    await asyncio.to_thread(WaitingRoom(mongo_url).fill, 3 * ORIGINALS, lambda _: None)

    [position] = await store.operations.next_positions(1)

    assert position > max(one.line or 0 for one in await all_waiting(store))
    assert all(one.state is OperationState.QUEUED for one in await all_waiting(store))
