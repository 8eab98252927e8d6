"""A pass of the scheduler over what is in memory."""

import asyncio

from modelyard.contract.states import Liveness, OperationState, Verb
from modelyard.store.operation_writes import IntakeEntry
from tests.support.dispatcher.parts import HOST, JOB, DispatcherParts, new_operation


async def test_why_an_operation_waits_is_explained_also_if_it_was_just_being_written_down() -> None:
    """A pass may come between intake's note in memory and its write, and explain nothing then."""
    parts = DispatcherParts()
    await parts.begin()
    document = parts.database.collections["hosts"][HOST]
    parts.database.write("hosts", {**document, "liveness": Liveness.SUSPECT})
    one = new_operation(Verb.DEPLOY_UNLOAD)
    await parts.lines.read([JOB])
    with parts.lines.entering([JOB]):
        parts.lines.append(one.queued(1))
        await parts.scheduler.schedule([JOB])
        await parts.store.operations.enter([IntakeEntry(one, 1)])
    await parts.scheduler.schedule_next_page()
    assert (await parts.recorded(one)).waiting_for == (f"host {HOST} is SUSPECT",)


async def test_one_sweep_records_a_job_again_and_schedules_what_waits_in_its_line() -> None:
    """Its job was deleted while it entered."""
    parts = DispatcherParts()
    await parts.begin()
    one = new_operation(Verb.TERMINATE, "deleted")
    await parts.put_in_line(one)
    running = asyncio.create_task(parts.event_log.run())
    await parts.scheduler.schedule_next_page()
    running.cancel()
    assert (await parts.recorded(one)).state is OperationState.SUCCEEDED
