"""What a drain does at its deadline."""

import pytest

from dispatcher.control import ControlPublisher
from dispatcher.maintenance.drains import Drains
from dispatcher.maintenance.retries import Retries
from modelyard.contract.states import OperationState, Verb
from modelyard.store.operations import QueuedEnding
from modelyard.store.records import OperationRecord
from tests.support.dispatcher.parts import HOST, JOB, DispatcherParts, new_operation

PERIOD_S = 10.0


class Draining:
    """A host at the deadline of its drain, with a job whose model is loaded."""

    def __init__(self) -> None:
        self.parts = parts = DispatcherParts()
        retries = Retries(parts.store, parts.event_log, parts.scheduler, max_attempts=3)
        control = ControlPublisher(parts.broker)
        self._drains = Drains(parts.store, parts.event_log, parts.scheduler, control, retries)

    async def begin(self) -> None:
        await self.parts.begin()
        await self.parts.store.hosts.drain(HOST, move=False, deadline_s=0.5)

    async def in_line(self, *, after_s: float = 1.0) -> list[OperationRecord]:
        """Let time pass, have the drain checked, and return the operations in the job's line."""
        self.parts.pass_time(after_s)
        await self._drains.check()
        (line,) = (await self.parts.store.jobs.lines([JOB])).lines
        return list(line.operations)

    async def cancel(self, operation: OperationRecord) -> None:
        ending = QueuedEnding(operation, OperationState.CANCELLED)
        assert await self.parts.store.operations.end_queued([ending], token="t")


@pytest.fixture
async def draining(monkeypatch: pytest.MonkeyPatch) -> Draining:
    # The clock of the database goes on by itself here, so it has to be read each time.
    monkeypatch.setattr("modelyard.store.connection.ASK_TIME_EVERY_S", 0.0)
    made = Draining()
    await made.begin()
    return made


async def test_a_job_gets_one_terminate_however_long_that_takes(draining: Draining) -> None:
    await draining.parts.put_in_line(new_operation())
    first = await draining.in_line()
    assert [one.verb for one in first] == [Verb.TERMINATE, Verb.INFER]
    for _ in range(3):
        assert await draining.in_line(after_s=PERIOD_S) == first


async def test_a_terminate_that_was_cancelled_is_followed_by_another_one(
    draining: Draining,
) -> None:
    (first,) = await draining.in_line()
    await draining.cancel(first)
    (second,) = await draining.in_line(after_s=PERIOD_S)
    assert (second.verb, second.source) == (Verb.TERMINATE, "system")
    assert second.operation_id != first.operation_id
    assert await draining.in_line(after_s=PERIOD_S) == [second]
    await draining.cancel(second)
    (third,) = await draining.in_line(after_s=PERIOD_S)
    assert third.operation_id not in {first.operation_id, second.operation_id}
