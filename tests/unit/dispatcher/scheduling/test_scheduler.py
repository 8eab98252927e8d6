"""What one pass decides, before it is written."""

from dispatcher.scheduling.scheduler import PlannedDispatch
from modelyard.contract.states import Liveness, Verb
from modelyard.store.operation_writes import IntakeEntry
from modelyard.store.records import HostRecord, JobRecord
from tests.support.dispatcher.parts import (
    HOST,
    INCARNATION,
    JOB,
    DispatcherParts,
    new_operation,
)


def test_a_pass_makes_one_claim_for_memory_and_record() -> None:
    """A second claim would have another time, and the end's event another than the record."""
    operation = new_operation().queued(1)
    host = HostRecord(host_id=HOST, incarnation=INCARNATION)
    planned = PlannedDispatch(operation, JobRecord(job_id=JOB), host, 1, None)
    assert planned.claim is planned.claim
    assert planned.claim.dispatched.dispatched_at == planned.claim.at


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
