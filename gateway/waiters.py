"""Waiters: requests that wait for an operation to end; events of `modelyard.events` wake them.

The event of the end has all that changed since the operation was read at the beginning, so it is
not read again. An event without it, as of an older dispatcher, only makes the waiter read.

Two rules bound their number: if the client disconnects, its request stops waiting at once; and
beyond `max_waiting` a request does not wait but gets the operation in its present state.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import structlog
from pydantic import ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from modelyard.broker import Broker, Delivery, Subscription, consume_forever
from modelyard.contract.messages import Event
from modelyard.contract.states import TERMINAL_STATES
from modelyard.contract.topology import EVENTS
from modelyard.store.records import OperationRecord

log = structlog.get_logger(__name__)

END_KEYS = sorted(f"operation.{state.lower()}" for state in TERMINAL_STATES)
"""The routing keys to subscribe to: only events of terminal states wake a waiter."""
MAX_EVENTS = 1_000
MAX_WAITING = 500

Read = Callable[[str], Awaitable[OperationRecord | None]]


class Waiters:
    """All waiting requests of the process; they share one subscription to the events."""

    def __init__(self, broker: Broker, *, max_waiting: int = MAX_WAITING) -> None:
        self._broker = broker
        self._max_waiting = max_waiting
        self._waiters: dict[str, set[WaitingRequest]] = {}
        self.waiting = 0
        """How many requests wait now."""
        self.attached = asyncio.Event()
        """Set while the subscription to the events is active."""
        self.closing = False

    @property
    def full(self) -> bool:
        """True if no more requests may wait: further clients get the present state at once."""
        return self.waiting >= self._max_waiting

    async def run(self) -> None:
        """Consume events until cancelled; a lost connection is opened again."""
        await consume_forever(self._subscribe, self._wake, name="events", max_items=MAX_EVENTS)

    def close(self) -> None:
        """Answer all waiting requests with the present state; from now on no request waits."""
        self.closing = True
        self._wake_all()

    async def until_end(
        self, operation_id: str, seconds: float, read: Read, receive: Receive
    ) -> OperationRecord | None:
        """Return the operation once it has ended, or its state after `seconds`; null if unknown.

        The operation is read at the beginning, at the deadline, and if events may have been lost.
        If too many requests wait already (`full`), its present state is returned at once.

        Raises `ClientDisconnect` as soon as `receive`, which belongs to the request, reports that
        the client has disconnected.
        """
        if self.full:
            return await read(operation_id)
        # It listens before it reads, so the event of an end that the read misses is not missed too.
        with self.listening(operation_id) as waiter:
            record = await read(operation_id)
            if record is None or record.state.terminal:
                return record
            return await self.end_of(record, seconds, waiter, read, receive)

    async def end_of(
        self,
        seen: OperationRecord,
        seconds: float,
        waiter: "WaitingRequest",
        read: Read,
        receive: Receive,
    ) -> OperationRecord | None:
        """Do as `until_end` for an operation that has not ended, and was seen like this.

        `waiter` has been listening since before.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        disconnect = asyncio.ensure_future(until_disconnect(receive))
        disconnect.add_done_callback(lambda _: waiter.woken.set())
        try:
            while True:
                waiting = not self.closing and await _set_before(deadline, waiter.woken)
                waiter.woken.clear()
                if disconnect.done():
                    disconnect.result()
                    raise ClientDisconnect
                if waiter.end is not None:
                    return _ended(seen, waiter.end)
                record = await read(seen.operation_id)
                if not waiting or record is None or record.state.terminal:
                    return record
        finally:
            disconnect.cancel()

    @contextmanager
    def listening(self, operation_id: str) -> Iterator["WaitingRequest"]:
        """Listen for the end of an operation, which need not be accepted yet."""
        waiter = WaitingRequest()
        group = self._waiters.setdefault(operation_id, set())
        group.add(waiter)
        self.waiting += 1
        try:
            yield waiter
        finally:
            self.waiting -= 1
            group.discard(waiter)
            if not group and self._waiters.get(operation_id) is group:
                del self._waiters[operation_id]

    @asynccontextmanager
    async def _subscribe(self) -> AsyncIterator[Subscription]:
        async with self._broker.tap(EVENTS, END_KEYS) as subscription:
            # Events published before the subscription are lost: let every waiter read the record.
            self._wake_all()
            self.attached.set()
            try:
                yield subscription
            finally:
                self.attached.clear()

    async def _wake(self, subscription: Subscription, deliveries: list[Delivery]) -> None:
        if self._waiters:
            for delivery in deliveries:
                self._tell(delivery)
        await subscription.ack(deliveries)

    def _tell(self, delivery: Delivery) -> None:
        try:
            event = Event.model_validate_json(delivery.body)
        except ValidationError:
            log.warning("event.unreadable", routing_key=delivery.routing_key)
            return
        for waiter in self._waiters.get(event.operation_id or "", ()):
            waiter.tell(event)

    def _wake_all(self) -> None:
        for group in self._waiters.values():
            for waiter in group:
                waiter.woken.set()


class WaitingRequest:
    """One request that waits."""

    def __init__(self) -> None:
        self.woken = asyncio.Event()
        self.end: Event | None = None
        """The event of the operation's end, if it has all that changed."""

    def tell(self, event: Event) -> None:
        """Wake the request, because its operation has ended."""
        if event.finished_at is not None:
            self.end = event
        self.woken.set()


def _ended(seen: OperationRecord, end: Event) -> OperationRecord:
    """Return an operation as its end has left it; `seen` is its record from before."""
    return seen.model_copy(
        update={
            "state": end.state,
            "phase": end.phase,
            "progress": end.progress,
            "waiting_for": (),
            "epoch": end.epoch,
            "seq": end.seq,
            "host_id": end.host_id,
            "generation": end.generation,
            "container_id": end.container_id,
            "error": end.error,
            "cancel_requested": seen.cancel_requested or bool(end.cancel_requested),
            "result_bytes": end.result_bytes,
            "result_type": end.result_type,
            "result_sha256": end.result_sha256,
            "dispatched_at": end.dispatched_at,
            "started_at": end.started_at,
            "finished_at": end.finished_at,
        }
    )


async def _set_before(deadline: float, woken: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout_at(deadline):
            await woken.wait()
    except TimeoutError:
        return False
    return True


async def until_disconnect(receive: Receive) -> None:
    """Return once the client has disconnected; drop what it still sends of its body."""
    while (await receive())["type"] != "http.disconnect":
        pass
