"""Events in the background: in their order, before what comes after them, and never lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
from prometheus_client import CollectorRegistry

from dispatcher import events as bounds
from dispatcher.events import EventLog
from dispatcher.leadership import NotLeadingError, Term
from dispatcher.metrics import DispatcherMetrics
from modelyard.contract.errors import BrokerUnavailableError, StoreUnavailableError
from modelyard.contract.messages import Event, Progress
from modelyard.contract.topology import EVENTS, EXCHANGES
from tests.fakes.broker import MemoryBroker, MemoryRabbit
from tests.fakes.broker_links import Call
from tests.fakes.mongodb import MemoryDatabase
from tests.fakes.store import MemoryStore
from tests.support.dispatcher.parts import ENDLESS, SlowAnswers


class Published:
    """An event log over fakes, and what it has published and recorded."""

    def __init__(self) -> None:
        self.database = MemoryDatabase(lambda: 0.0)
        self.link = SlowAnswers()
        store = MemoryStore(self.database, link=self.link)
        rabbit = MemoryRabbit()
        rabbit.declare_exchanges(*EXCHANGES)
        self._queue = rabbit.tap(EVENTS, ["#"])
        self.broker = MemoryBroker(rabbit, name="events")
        self.term = Term(1, ENDLESS)
        self.log = EventLog(store, self.broker, self.term, DispatcherMetrics(CollectorRegistry()))
        self.done: list[str] = []
        """What has come after events."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Publish what is noted, for some seconds at most."""
        running = asyncio.create_task(self.log.run())
        try:
            async with asyncio.timeout(10.0):
                yield
        finally:
            running.cancel()
            await asyncio.wait([running])

    async def all_is_done(self) -> None:
        """Return once everything that was noted is published."""
        done = asyncio.Event()

        async def note() -> None:
            done.set()

        self.log.then(note)
        await done.wait()

    def then(self, what: str) -> None:
        """Note in `done` that all events which were noted before are published."""

        async def note() -> None:
            self.done.append(f"{what} after {len(self.published)}")

        self.log.then(note)

    @property
    def published(self) -> list[str]:
        """The types of all published events."""
        return [letter.routing_key for letter in self._queue.letters]

    @property
    def recorded(self) -> set[str]:
        """The ids of all events in the event log."""
        return {document["_id"] for document in self.database.documents("events")}


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "backoff_s", lambda _: 0.001)


def event(name: str) -> Event:
    return Event(event_id=name, type=name, at=datetime(2026, 1, 1, tzinfo=UTC))


async def test_events_are_published_in_their_order_and_recorded() -> None:
    it = Published()
    async with it.running():
        it.log.note([event("a"), event("b")])
        it.log.note([event("c")])
        await it.all_is_done()
    assert it.published == ["a", "b", "c"]
    assert it.recorded == {"a", "b", "c"}


async def test_progress_is_published_and_not_recorded() -> None:
    it = Published()
    progress = event("a").model_copy(update={"progress": Progress(current=1)})
    async with it.running():
        await it.log.publish([progress])
    assert (it.published, it.recorded) == (["a"], set())


async def test_what_comes_after_events_waits_for_those_before_it_alone() -> None:
    it = Published()
    it.log.note([event("a")])
    it.then("first")
    it.log.note([event("b"), event("c")])
    it.then("second")
    it.link.hold()
    async with it.running():
        await it.link.held.wait()
        assert it.done == []
        it.link.let_go()
        await it.all_is_done()
    assert [one.partition(" ")[0] for one in it.done] == ["first", "second"]


async def test_without_events_what_comes_after_them_is_done_at_once() -> None:
    it = Published()
    async with it.running():
        it.then("nothing")
        await it.all_is_done()
    assert it.done == ["nothing after 0"]
    assert it.link.calls[Call.WRITE] == 0


async def test_an_ack_that_fails_stops_nothing() -> None:
    it = Published()

    async def fail() -> None:
        raise BrokerUnavailableError

    async with it.running():
        it.log.then(fail)
        it.log.note([event("a")])
        await it.all_is_done()
    assert it.published == ["a"]


async def test_many_events_are_published_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "FLUSHED_AT_ONCE", 2)
    it = Published()
    it.log.note([event(name) for name in "abcde"])
    it.then("all")
    async with it.running():
        await it.all_is_done()
    assert it.published == list("abcde")
    assert it.done == ["all after 5"]
    assert it.link.calls[Call.WRITE] == 3


async def test_publish_returns_once_all_that_was_noted_before_is_published() -> None:
    it = Published()
    async with it.running():
        it.log.note([event("a")])
        await it.log.publish([event("b")])
        assert it.published == ["a", "b"]
        await it.log.publish([])


# --- while a server is away ---


async def test_while_mongodb_is_away_events_wait_and_whoever_waits_for_them_is_told() -> None:
    it = Published()
    it.link.up = False
    async with it.running():
        it.log.note([event("a")])
        it.then("first")
        with pytest.raises(StoreUnavailableError):
            await it.log.publish([event("b")])
        with pytest.raises(StoreUnavailableError):
            await it.log.publish([event("c")])
        assert it.done == []
        it.link.up = True
        await it.all_is_done()
    assert it.recorded == {"a", "b", "c"}
    # They were published while MongoDB was away, and again: at least once.
    assert it.published[-3:] == ["a", "b", "c"]
    assert len(it.done) == 1


async def test_an_event_whose_record_was_not_confirmed_is_recorded_once() -> None:
    it = Published()
    it.link.fates.append("lost_after")
    it.log.note([event("a")])
    async with it.running():
        await it.all_is_done()
    assert it.recorded == {"a"}
    assert set(it.published) == {"a"}


async def test_while_rabbitmq_is_away_events_are_recorded_only() -> None:
    it = Published()
    it.broker.link.up = False
    it.log.note([event("a")])
    it.then("first")
    async with it.running():
        await it.all_is_done()
    assert (it.published, it.recorded) == ([], {"a"})
    assert it.done == ["first after 0"]


async def test_what_is_noted_when_publishing_is_cancelled_comes_first_afterwards() -> None:
    it = Published()
    it.log.note([event("a")])
    it.then("first")
    it.link.hold()
    async with it.running():
        await it.link.held.wait()
    assert it.done == []
    it.link.let_go()
    it.log.note([event("b")])
    async with it.running():
        await it.all_is_done()
    assert it.published[-2:] == ["a", "b"]
    assert [one.partition(" ")[0] for one in it.done] == ["first"]


async def test_whoever_stops_waiting_for_events_disturbs_nobody() -> None:
    it = Published()
    waiting = asyncio.create_task(it.log.publish([event("a")]))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    async with it.running():
        await it.log.publish([event("b")])
    assert it.published == ["a", "b"]


async def test_nothing_is_acked_once_the_term_is_over() -> None:
    it = Published()
    it.log.note([event("a")])
    it.then("first")
    it.term.end()
    with pytest.raises(NotLeadingError):
        async with asyncio.timeout(10.0):
            await it.log.run()
    assert it.done == []


# --- bounds ---


async def test_with_room_nobody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MOST_NOTED", 2)
    it = Published()
    it.log.note([event("a")])
    await it.log.room()


async def test_without_room_one_waits_until_all_that_was_noted_is_published(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bounds, "MOST_NOTED", 2)
    it = Published()
    it.log.note([event("a"), event("b")])
    waiting = asyncio.create_task(it.log.room())
    async with it.running():
        await waiting
    assert it.published == ["a", "b"]


async def test_without_room_and_mongodb_whoever_waits_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bounds, "MOST_NOTED", 1)
    it = Published()
    it.link.up = False
    it.log.note([event("a")])
    async with it.running():
        with pytest.raises(StoreUnavailableError):
            await it.log.room()


# --- the log alone ---


async def test_what_is_no_fact_is_recorded_and_not_published() -> None:
    it = Published()
    assert await it.log.record([event("a"), event("b")]) == {"a", "b"}
    assert await it.log.record([event("b"), event("c")]) == {"c"}
    assert it.published == []
