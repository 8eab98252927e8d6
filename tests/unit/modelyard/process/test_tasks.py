"""Groups of tasks leave their parent as cancelled as it was."""

import asyncio
import threading

import pytest
from structlog.testing import capture_logs

from modelyard.broker.connection_loss import losses
from modelyard.contract.errors import BrokerUnavailableError, StoreUnavailableError
from modelyard.process.tasks import TaskGroup, in_daemon_thread, together, unending


async def fails() -> None:
    await asyncio.sleep(0)
    raise StoreUnavailableError


async def lasts() -> None:
    await asyncio.Event().wait()


def cancelling() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


async def test_a_failure_is_no_cancellation_of_who_waits() -> None:
    with pytest.raises(StoreUnavailableError):
        await together(fails(), lasts())
    assert cancelling() == 0


async def test_a_failure_while_the_body_runs_is_no_cancellation_either() -> None:
    async def group() -> None:
        async with TaskGroup() as tasks:
            tasks.create_task(fails())
            await lasts()

    with pytest.raises(ExceptionGroup):
        await group()
    assert cancelling() == 0


async def test_a_group_in_the_body_of_a_group_counts_for_itself() -> None:
    counted = []

    async def outer() -> None:
        async with TaskGroup():
            with pytest.raises(StoreUnavailableError):
                await together(fails(), lasts())
            counted.append(cancelling())

    await outer()
    assert counted == [0]


async def test_a_connection_that_is_lost_after_a_failure_is_no_cancellation() -> None:
    """A consumer that took it for one would end without a word."""
    with pytest.raises(StoreUnavailableError):
        await together(fails(), lasts())
    with pytest.raises(BrokerUnavailableError), losses():
        raise ConnectionResetError


@pytest.mark.parametrize("first", ["failure", "cancellation"])
async def test_who_is_cancelled_hears_that_before_a_failure(first: str) -> None:
    """Else it would go on with the failure: try again, for ever."""
    inside = asyncio.Event()
    now = asyncio.Event()

    async def fails_now() -> None:
        inside.set()
        await now.wait()
        raise StoreUnavailableError

    waiting = asyncio.create_task(together(fails_now(), lasts()))
    await inside.wait()
    if first == "failure":
        now.set()
        waiting.cancel()
    else:
        waiting.cancel()
        now.set()
    await asyncio.wait((waiting,))
    assert waiting.cancelled()


async def test_who_is_cancelled_while_a_failed_group_ends_hears_that() -> None:
    slow = asyncio.Event()

    async def ends_slowly() -> None:
        try:
            await lasts()
        finally:
            slow.set()
            await asyncio.sleep(0.05)

    waiting = asyncio.create_task(together(fails(), ends_slowly()))
    await slow.wait()  # the group has asked its parent already
    waiting.cancel()
    await asyncio.wait((waiting,))
    assert waiting.cancelled()


async def test_a_bug_that_meets_a_cancellation_is_logged() -> None:
    async def buggy() -> None:
        try:
            await lasts()
        finally:
            raise KeyError("a bug")

    waiting = asyncio.create_task(together(buggy(), lasts()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with capture_logs() as logs:
        await asyncio.wait((waiting,))
    assert waiting.cancelled()
    assert [one["event"] for one in logs] == ["failure.while_cancelled"]


async def test_a_task_that_is_cancelled_by_nobody_ends_its_group() -> None:
    async def library() -> None:
        raise asyncio.CancelledError

    async def group() -> None:
        async with TaskGroup() as tasks:
            tasks.create_task(unending(library()))
            tasks.create_task(unending(lasts()))

    with pytest.raises(ExceptionGroup) as failed:
        await group()
    (one,) = failed.value.exceptions
    assert isinstance(one, RuntimeError)


async def test_a_cancelled_group_is_cancelled() -> None:
    waiting = asyncio.create_task(together(lasts(), lasts()))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait((waiting,))
    assert waiting.cancelled()


async def test_a_thread_that_nobody_waits_for_any_more_ends_without_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    faults: list[object] = []
    monkeypatch.setattr(threading, "excepthook", faults.append)
    may_end, began = threading.Event(), threading.Event()

    def work() -> threading.Thread:
        thread = threading.current_thread()
        threads.append(thread)
        began.set()
        may_end.wait(20)
        return thread

    threads: list[threading.Thread] = []
    waiting = in_daemon_thread(work, name="test")
    assert began.wait(20)
    assert waiting.cancel()
    await asyncio.sleep(0)  # the cancellation arrives
    may_end.set()
    threads[0].join(20)
    assert not threads[0].is_alive()
    assert faults == []
