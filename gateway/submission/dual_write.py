"""The dual write: records operations in MongoDB and publishes them to RabbitMQ at the same time."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import structlog

from gateway.availability import Availability
from gateway.caches.newest import Newest
from gateway.monitoring.metrics import GatewayMetrics
from modelyard.broker import Broker
from modelyard.contract.errors import BrokerUnavailableError, StoreUnavailableError
from modelyard.contract.ids import DEFAULT_TENANT
from modelyard.contract.message_types import SUBMISSION_TYPE
from modelyard.contract.messages import MAX_BATCH, MAX_MESSAGE_BYTES, JobRequest
from modelyard.contract.states import VERB_RULES, JobState
from modelyard.contract.topology import JOBS, SUBMIT_KEY
from modelyard.process.batching import Coalescer, chunks_by_size
from modelyard.process.crash_points import crash_point
from modelyard.process.tasks import TaskGroup, unending
from modelyard.store import Store
from modelyard.store.records import NewOperation

log = structlog.get_logger(__name__)

STORE_TIMEOUT_S = 1.0
"""How long MongoDB or RabbitMQ may take; after that, the confirmation of the other counts alone."""
MARK_TIMEOUT_S = 0.8
"""How long it may take to record that an operation was not published."""
BYTES_PER_S = 4 << 20
"""Least bytes that a store accepts in a second: a large body gets that much more time."""
LARGE_BYTES = MAX_MESSAGE_BYTES
"""At this size of its inputs a body gets its own write, so that smaller ones do not wait for it."""
MAX_WRITE_BYTES = 2 << 20
"""Most bytes of inputs in one write to MongoDB: encoding them blocks the event loop."""
MAX_GROUP = 1_000
"""Most requests or batches that share one write."""
GROUPS_EVERY_S = 0.01
"""Least seconds between two writes of requests that come at the same time."""
MAX_ENSURED = 10_000
"""Most job ids that are remembered as having a record."""

_ENVELOPE = (b'{"schema_version":1,"requests":[', b"]}")
_ENVELOPE_BYTES = sum(map(len, _ENVELOPE))


@dataclass(frozen=True, slots=True)
class Durability:
    """Where one operation is durable."""

    recorded: bool
    """True if it is in the record, and also that it was not published, if that is so."""
    published: bool
    first: bool
    """True if this write created the record; false if the id was recorded before."""


OperationGroup = tuple[NewOperation, ...]
Messages = tuple[bytes, ...]


class DualWrite:
    """Group commit to MongoDB and RabbitMQ: concurrent requests share one write and one message."""

    def __init__(
        self,
        store: Store,
        store_up: Availability,
        broker: Broker,
        broker_up: Availability,
        metrics: GatewayMetrics,
    ) -> None:
        self._store = store
        self._store_up = store_up
        self._broker = broker
        self._broker_up = broker_up
        self._recording: Coalescer[OperationGroup, tuple[bool, ...]] = Coalescer(
            self._record_groups,
            max_items=MAX_GROUP,
            every_s=GROUPS_EVERY_S,
            flushed=metrics.committed("mongodb"),
        )
        self._publishing: Coalescer[Messages, int] = Coalescer(
            self._publish_groups,
            max_items=MAX_GROUP,
            every_s=GROUPS_EVERY_S,
            flushed=metrics.committed("rabbitmq"),
        )
        self._ensured: Newest[str, None] = Newest(MAX_ENSURED)

    async def run(self) -> None:
        """Write groups until cancelled."""
        async with TaskGroup() as tasks:
            tasks.create_task(unending(self._recording.run()))
            tasks.create_task(unending(self._publishing.run()))
            tasks.create_task(unending(self._store.keep_time()))

    async def take(self, new: Sequence[tuple[NewOperation, JobRequest]]) -> list[Durability]:
        """Record and publish operations; return where each is durable after about a second."""
        if not new:
            return []
        operations = tuple(self._store.operations.accepted_now(one for one, _ in new))
        size = sum(map(_size, operations))
        messages = await _messages(zip(operations, (request for _, request in new), strict=True))
        deadline = asyncio.get_running_loop().time() + STORE_TIMEOUT_S + size / BYTES_PER_S
        # Both begin before the first is awaited. They are futures, for two tasks would cost more
        # than all else that is done here for a small request.
        recording = self._begin_to_record(operations, alone=size >= LARGE_BYTES)
        publishing = self._begin_to_publish(messages, alone=size >= LARGE_BYTES)
        try:
            first = await self._recorded(recording, operations, deadline)
            published = await self._published(publishing, deadline)
        finally:
            for one in (recording, publishing):
                if one is not None:
                    one.cancel()
        noted = first is not None and await self._noted(operations[published:])
        return [
            Durability(
                recorded=first is not None and (index < published or noted),
                published=index < published,
                first=first is not None and first[index],
            )
            for index in range(len(new))
        ]

    async def _noted(self, unpublished: Sequence[NewOperation]) -> bool:
        """Record that operations were not published; return whether that is done.

        Then intake puts them before later messages. Else they would come into line at some later
        time, so no client may be told that they are accepted.
        """
        if not unpublished:
            return True
        try:
            await self._store_up.ask(
                lambda: self._store.operations.mark_unpublished(
                    [one.operation_id for one in unpublished]
                ),
                within_s=MARK_TIMEOUT_S,
            )
        except StoreUnavailableError:
            return False
        return True

    def _begin_to_record(
        self, operations: OperationGroup, *, alone: bool
    ) -> asyncio.Future[tuple[bool, ...]] | None:
        """Begin to record operations; null while MongoDB is down."""
        if self._store_up.down:
            return None
        if not alone:
            return self._recording.enqueue(operations)
        return asyncio.ensure_future(self._record_alone(operations))

    def _begin_to_publish(self, messages: Messages, *, alone: bool) -> asyncio.Future[int] | None:
        """Begin to publish messages; null while RabbitMQ is down."""
        if self._broker_up.down:
            return None
        if not alone:
            return self._publishing.enqueue(messages)
        return asyncio.ensure_future(self._publish_alone(messages))

    async def _recorded(
        self,
        recording: asyncio.Future[tuple[bool, ...]] | None,
        operations: OperationGroup,
        deadline: float,
    ) -> tuple[bool, ...] | None:
        """Return which of the operations are new; null if MongoDB did not record them."""
        if recording is None:
            return None
        try:
            return await self._store_up.answer_of(recording, deadline)
        except StoreUnavailableError:
            return None
        except Exception:
            # The boundary between the two stores: if MongoDB refuses the write for any reason,
            # RabbitMQ may still accept it.
            log.exception("record.failed", operations=[one.operation_id for one in operations[:8]])
            return None

    async def _published(self, publishing: asyncio.Future[int] | None, deadline: float) -> int:
        """Return how many messages RabbitMQ has confirmed, counted from the first."""
        if publishing is None:
            return 0
        try:
            return await self._broker_up.answer_of(publishing, deadline)
        except BrokerUnavailableError:
            return 0

    async def _record_alone(self, operations: OperationGroup) -> tuple[bool, ...]:
        [are_new] = await self._record_groups([operations])
        return are_new

    async def _publish_alone(self, messages: Messages) -> int:
        [confirmed] = await self._publish_groups([messages])
        if isinstance(confirmed, Exception):
            raise confirmed
        return confirmed

    async def _record_groups(self, groups: Sequence[OperationGroup]) -> list[tuple[bool, ...]]:
        every = [operation for group in groups for operation in group]
        are_new: list[bool] = []
        for part in chunks_by_size(every, _size, max_bytes=MAX_WRITE_BYTES, max_items=MAX_BATCH):
            recorded, _ = await asyncio.gather(
                self._store.operations.record(part), self._ensure_jobs(part)
            )
            are_new += recorded
            crash_point("gateway.after_record")
        answers = iter(are_new)
        return [tuple(next(answers) for _ in group) for group in groups]

    async def _ensure_jobs(self, operations: Iterable[NewOperation]) -> None:
        """Create missing jobs, so that clients can read them at once.

        The dispatcher records what is missing: also a job that was deleted and begins again.
        """
        named = {one.job_id for one in operations if one.job_id and _makes_job(one)}
        unseen = named - self._ensured.keys()
        await self._store.jobs.ensure(unseen)
        self._ensured.update(dict.fromkeys(unseen))

    async def _publish_groups(self, groups: Sequence[Messages]) -> list[int | Exception]:
        """Publish the messages one by one and in order: a gap would change the order in a job."""
        done = 0
        failure: BrokerUnavailableError | None = None
        for chunk in _chunks(message for group in groups for message in group):
            crash_point("gateway.before_publish")
            try:
                await self._broker.publish(
                    JOBS,
                    SUBMIT_KEY,
                    _ENVELOPE[0] + b",".join(chunk) + _ENVELOPE[1],
                    message_type=SUBMISSION_TYPE,
                    timeout_s=STORE_TIMEOUT_S,
                )
            except BrokerUnavailableError as error:
                failure = error
                break
            crash_point("gateway.after_publish")
            done += len(chunk)
        return [
            failure if failure and confirmed == 0 else confirmed
            for confirmed in _shares(done, [len(group) for group in groups])
        ]


def _makes_job(operation: NewOperation) -> bool:
    """Tell whether there is a job after this operation if there was none before."""
    if operation.verb is None:
        return False
    rule = VERB_RULES[operation.verb]
    return JobState.NONE in rule.starts_from | rule.holds_in


def _size(operation: NewOperation) -> int:
    """Return the approximate size of an operation: that of its input, all else is small."""
    return len(operation.input_json or "")


async def _messages(new: Iterable[tuple[NewOperation, JobRequest]]) -> Messages:
    messages: list[bytes] = []
    unpaused = 0
    for operation, request in new:
        messages.append(_message(operation, request))
        unpaused += len(messages[-1])
        if unpaused > MAX_WRITE_BYTES:
            await asyncio.sleep(0)
            unpaused = 0
    return tuple(messages)


def _message(operation: NewOperation, request: JobRequest) -> bytes:
    """Return a `SubmittedRequest` as JSON; the input may be large, and is JSON text already."""
    fields = request.model_dump_json(exclude_defaults=True, exclude={"input"})
    if operation.input_json is not None:
        fields = f'{fields[:-1]},"input":{operation.input_json}}}'
    retry = f',"retry_of":"{operation.retry_of}"' if operation.retry_of else ""
    tenant = f',"tenant":"{operation.tenant}"' if operation.tenant != DEFAULT_TENANT else ""
    accepted = ""
    if operation.accepted is not None:
        at, number = operation.accepted
        accepted_ms = round(at.timestamp() * 1_000)
        accepted = f',"accepted_ms":{accepted_ms},"accepted_number":{number}'
    named = f'"operation_id":"{operation.operation_id}"{retry}{tenant}{accepted}'
    return f'{{{named},"request":{fields}}}'.encode()


def _chunks(messages: Iterable[bytes]) -> Iterator[list[bytes]]:
    return chunks_by_size(
        messages,
        lambda message: len(message) + 1,
        max_bytes=MAX_MESSAGE_BYTES - _ENVELOPE_BYTES,
        max_items=MAX_BATCH,
    )


def _shares(done: int, sizes: Sequence[int]) -> Iterator[int]:
    """Yield for each group how many of its messages are among the first `done` ones."""
    for size in sizes:
        share = min(size, done)
        done -= share
        yield share
