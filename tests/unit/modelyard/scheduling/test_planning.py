"""What one pass decides, before it is written."""

from modelyard.scheduling.planning import PlannedDispatch
from modelyard.store.records import HostRecord, JobRecord
from tests.support.dispatcher.parts import HOST, INCARNATION, JOB, new_operation


def test_a_pass_makes_one_claim_for_memory_and_record() -> None:
    """A second claim would have another time, and the end's event another than the record."""
    operation = new_operation().queued(1)
    host = HostRecord(host_id=HOST, incarnation=INCARNATION)
    planned = PlannedDispatch(operation, JobRecord(job_id=JOB), host, 1, None)
    assert planned.claim is planned.claim
    assert planned.claim.dispatched.dispatched_at == planned.claim.at
