"""Retention: what each setting removes, and who stops it."""

import time
import uuid

import pytest

from dispatcher.leadership import NotLeadingError, Term
from dispatcher.maintenance.retention import retention
from dispatcher.maintenance.retention.retention import KeptDays, Retention
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.messages import JobRequest
from modelyard.contract.states import OperationState
from modelyard.store.operations import QueuedEnding
from modelyard.store.records import DeadLetter, NewOperation
from tests.fakes.mongodb import MemoryDatabase
from tests.fakes.store import MemoryStore

DAY_S = 86_400.0


class Aging:
    """A store whose clock a test turns on, with records of a day zero."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.later_s = 0.0
        self.database = MemoryDatabase(self._seconds)
        self.store = MemoryStore(self.database)
        self.term = Term(1, time.monotonic() + 1e9)

    def _seconds(self) -> float:
        return time.monotonic() - self._began + self.later_s

    async def fill(self, operations: int = 1) -> None:
        for number in range(operations):
            request = JobRequest.model_validate(
                {"job_id": f"j{number}", "operation_type": "TEMP", "model": "m"}
            )
            one = NewOperation.of(uuid.uuid4().hex, request, "http")
            await self.store.operations.take_in([(one, number)])
            error = ErrorInfo.of(ErrorCode.CANCELLED)
            ending = QueuedEnding(one.queued(number), OperationState.CANCELLED, error)
            await self.store.operations.end_queued([ending], token="t")
        await self.store.dead_letters.add([DeadLetter(dead_letter_id="d", reason="internal")])

    async def after(self, days: float, kept: KeptDays) -> tuple[int, ...]:
        """Return how many operations and dead letters are left so many days later."""
        self.later_s = days * DAY_S
        # Another process, which asks for the time anew.
        removing = Retention(MemoryStore(self.database), self.term, kept)
        while await removing.remove():
            pass
        return tuple(len(self.database.documents(one)) for one in ("operations", "dead_letters"))


@pytest.fixture
async def aging() -> Aging:
    made = Aging()
    await made.store.prepare()
    return made


async def test_each_kind_is_kept_for_as_long_as_its_setting_says(aging: Aging) -> None:
    await aging.fill()
    kept = KeptDays(operations=30, results=30, events=30, dead_letters=7)
    assert await aging.after(6, kept) == (1, 1)
    assert await aging.after(8, kept) == (1, 0)
    assert await aging.after(29, kept) == (1, 0)
    assert await aging.after(31, kept) == (0, 0)


async def test_zero_days_are_for_ever(aging: Aging) -> None:
    await aging.fill()
    kept = KeptDays(operations=0, results=0, events=0, dead_letters=0)
    assert await aging.after(36_500, kept) == (1, 1)


async def test_what_is_more_than_a_batch_goes_batch_by_batch(
    aging: Aging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 3)
    await aging.fill(operations=7)
    aging.later_s = 31 * DAY_S
    kept = KeptDays(operations=30, results=30, events=30, dead_letters=0)
    removing = Retention(MemoryStore(aging.database), aging.term, kept)
    more = [await removing.remove() for _ in range(3)]
    assert more == [True, True, False]
    assert (await aging.after(31, kept))[0] == 0


async def test_who_leads_no_more_removes_nothing(aging: Aging) -> None:
    await aging.fill()
    aging.term.end()
    kept = KeptDays(operations=30, results=30, events=30, dead_letters=30)
    with pytest.raises(NotLeadingError):
        await aging.after(31, kept)
    assert len(aging.database.documents("operations")) == 1
