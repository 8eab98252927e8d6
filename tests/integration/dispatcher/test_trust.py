"""What senders may not say: real users on a real RabbitMQ, with the rights that are documented."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import pytest
from aio_pika.exceptions import AMQPError
from structlog.testing import capture_logs

from deploy.local.rabbitmq import RabbitMQ
from gateway.submission.replays import refuse_unless_replayable
from modelyard.broker import (
    DETAIL_HEADER,
    QUEUE_HEADER,
    REASON_HEADER,
    SENDER_HEADER,
    Broker,
    DirectReply,
)
from modelyard.contract.errors import BrokerUnavailableError, ErrorCode, ModelyardError
from modelyard.contract.ids import new_operation_id, operation_id_for_key
from modelyard.contract.message_types import (
    CANCEL_TYPE,
    HELLO_TYPE,
    OVERDUE_REPORTS_TYPE,
    OVERDUE_TYPE,
    SUBMISSION_TYPE,
    UNREADABLE_TYPE,
)
from modelyard.contract.messages import (
    EngineFacts,
    Heartbeat,
    HostHello,
    HostOnline,
    Inventory,
    JobRequest,
    Submission,
    SubmittedRequest,
    WorkerReports,
)
from modelyard.contract.states import JobState, OperationState, Verb
from modelyard.contract.topology import (
    DEAD,
    DEAD_QUEUE,
    EVENTS,
    HEARTBEATS,
    JOBS,
    JOBS_QUEUE,
    REPLAY_HEADER,
    REPORTS,
    REPORTS_QUEUE,
    SUBMIT_KEY,
    host_queue,
    queues_of_host,
)
from modelyard.store import Store
from modelyard.store.records import DeadLetter
from tests.support.dispatcher.deployed import accepted, fenced_off
from tests.support.dispatcher.driver import MODEL, DispatcherDriver, running_dispatcher
from tests.support.dispatcher.enrolled import enrol
from tests.support.dispatcher.scripted_host import ScriptedHost, scripted_host
from tests.support.servers.rabbitmq_users import Users
from tests.support.waiting import eventually

PUBLISHER = "frontend"
OWNER, THIEF = "h1", "h2"
VHOSTS = [f"trust-{number}" for number in range(48)]
"""One for each test, and some more."""


@pytest.fixture(scope="module")
def users(rabbitmq: RabbitMQ, folder: Path) -> Iterator[Users]:
    """Make the documented users, and enough virtual hosts that let them in."""
    own = folder / "trust"
    own.mkdir()
    made = Users(rabbitmq, own, hosts=[OWNER, THIEF], publishers=[PUBLISHER])
    made.enter(*VHOSTS, queues=False)
    yield made
    made.leave(*VHOSTS)


@pytest.fixture(scope="module")
def vhosts(users: Users) -> Iterator[str]:  # noqa: ARG001
    """Give each test the next one."""
    return iter(VHOSTS)


@pytest.fixture
def amqp_url(rabbitmq: RabbitMQ, vhosts: Iterator[str]) -> str:
    """Give the test a virtual host of its own; the dispatcher is the guest there."""
    return f"{rabbitmq.url}/{next(vhosts)}"


def _vhost(amqp_url: str) -> str:
    return urlsplit(amqp_url).path.removeprefix("/")


class Stranger:
    """A sender of his own: he says what he likes, and RabbitMQ verifies who he is."""

    def __init__(self, url: str, user: str, *, signs: bool) -> None:
        self._url = url
        self._user = user
        self._signs = signs

    async def publish(
        self, exchange: str, routing_key: str, body: bytes, **properties: Any
    ) -> None:
        async with await aio_pika.connect(self._url) as connection:
            channel = await connection.channel()
            target = await channel.get_exchange(exchange, ensure=False)
            if self._signs:
                properties["user_id"] = self._user
            await target.publish(aio_pika.Message(body, **properties), routing_key, mandatory=False)


@pytest.fixture(params=[True, False], ids=["signs", "does-not-sign"])
def publisher(request: pytest.FixtureRequest, users: Users, amqp_url: str) -> Stranger:
    """Give the test a publisher, who may name his user on a message or leave it out."""
    url = users.url(PUBLISHER, _vhost(amqp_url))
    return Stranger(url, PUBLISHER, signs=request.param)


@pytest.fixture
def thief(users: Users, amqp_url: str) -> Stranger:
    """Give the test whoever has the account of h2's worker."""
    user = f"worker-{THIEF}"
    return Stranger(users.url(user, _vhost(amqp_url)), user, signs=True)


@pytest.fixture
async def driver(store: Store, broker: Broker) -> AsyncIterator[DispatcherDriver]:
    await store.models.put(MODEL)
    async with running_dispatcher(store, broker):
        yield DispatcherDriver(store, broker)


async def _letters(driver: DispatcherDriver) -> list[DeadLetter]:
    page = await driver.store.dead_letters.page({}, after=None, limit=20)
    found = [await driver.store.dead_letters.get(one.dead_letter_id) for one in page.items]
    return [one for one in found if one is not None]


def _end_of(owner: ScriptedHost, command: Any) -> bytes:
    """Return a report that ends a command, as its own host would send it."""
    forged = WorkerReports(
        host_id=owner.host_id,
        incarnation=owner.incarnation,
        number=owner.number + 1,
        operations=(owner.made(command, OperationState.FAILED, seq=7),),
    )
    return forged.model_dump_json().encode()


async def _goes_on(driver: DispatcherDriver, owner: ScriptedHost, command: Any) -> None:
    """Look that an attempt is untouched, and that its own worker can end it."""
    running = await driver.operation(command.operation_id)
    assert (running.state, running.epoch) == (OperationState.RUNNING, command.epoch)
    await owner.finish(command)
    await driver.operation(command.operation_id, OperationState.SUCCEEDED)


_OF_REPORTS = {"queue": REPORTS_QUEUE.name, "reason": "expired", "count": 1, "exchange": "x"}


@pytest.mark.parametrize(
    "said",
    [
        {QUEUE_HEADER: REPORTS_QUEUE.name, REASON_HEADER: "worker_error"},
        {
            QUEUE_HEADER: REPORTS_QUEUE.name,
            REASON_HEADER: "worker_error",
            DETAIL_HEADER: "It is over.",
            SENDER_HEADER: f"worker-{OWNER}",
        },
        {"x-death": [_OF_REPORTS]},
        {"x-first-death-queue": REPORTS_QUEUE.name, "x-first-death-reason": "expired"},
        {"x-death": REPORTS_QUEUE.name},
    ],
    ids=["ours", "all of ours", "x-death", "x-first-death", "x-death as text"],
)
async def test_a_publishers_dead_letter_ends_nothing_and_is_no_report(
    *,
    store: Store,
    broker: Broker,
    rabbitmq: RabbitMQ,
    amqp_url: str,
    publisher: Stranger,
    said: dict[str, Any],
) -> None:
    """It expires in the queue of requests, under the routing key of a host."""
    # One who may publish by every key: the rule on keys is a second wall, not the only one.
    vhost = _vhost(amqp_url)
    await asyncio.to_thread(rabbitmq.ctl, "clear_topic_permissions", "-p", vhost, PUBLISHER)
    await store.models.put(MODEL)
    driver = DispatcherDriver(store, broker)
    async with scripted_host(broker, OWNER) as owner:
        async with running_dispatcher(store, broker):
            await driver.submit(Verb.DEPLOY_CREATE)
            command = await accepted(driver, owner)
        headers = {"CC": [SUBMIT_KEY], **said}
        forged = _end_of(owner, command)
        await publisher.publish(JOBS.name, OWNER, forged, headers=headers, expiration=0.001)
        await _holds(broker, DEAD_QUEUE.name)
        async with running_dispatcher(store, broker):
            letter = await driver.dead_letter()
            assert letter.queue == JOBS_QUEUE.name
            assert not letter.from_modelyard
            # It may be replayed, and is a request then: nothing but requests ever is.
            refuse_unless_replayable(letter)
            await _goes_on(driver, owner, command)


async def _holds(broker: Broker, queue: str) -> None:
    async with await aio_pika.connect(broker._url) as connection:
        channel = await connection.channel()

        async def there() -> bool:
            found = await channel.declare_queue(queue, passive=True)
            return (found.declaration_result.message_count or 0) > 0

        await eventually(there, what=f"a message in {queue}")


async def test_a_publisher_claims_no_operation_id(
    driver: DispatcherDriver, publisher: Stranger
) -> None:
    claimed = new_operation_id()
    request = JobRequest(job_id="j", operation_type=Verb.TERMINATE)
    said = Submission(requests=(SubmittedRequest(operation_id=claimed, request=request),))
    await publisher.publish(
        JOBS.name,
        SUBMIT_KEY,
        said.model_dump_json().encode(),
        type=SUBMISSION_TYPE,
        message_id="mine",
    )
    refused = await driver.operation(operation_id_for_key("mine"), OperationState.REJECTED)
    assert refused.error is not None
    assert refused.error.code is ErrorCode.INVALID_REQUEST
    assert await driver.store.operation_queries.get(claimed) is None


@pytest.mark.parametrize(
    "said",
    [
        {"type": OVERDUE_TYPE},
        {"type": CANCEL_TYPE},
        {"type": OVERDUE_REPORTS_TYPE},
        {"type": SUBMISSION_TYPE},
        {"headers": {REPLAY_HEADER: "a-letter:1"}},
        {"headers": {QUEUE_HEADER: REPORTS_QUEUE.name, REASON_HEADER: "x"}},
    ],
)
async def test_a_publishers_message_is_a_request_whatever_it_calls_itself(
    driver: DispatcherDriver, publisher: Stranger, said: dict[str, Any]
) -> None:
    body = b'{"job_id": "j", "operation_type": "TERMINATE"}'
    await publisher.publish(JOBS.name, SUBMIT_KEY, body, message_id="mine", **said)
    made = await driver.operation(operation_id_for_key("mine"), OperationState.SUCCEEDED)
    assert made.retry_of is None
    page = await driver.store.operation_queries.page({}, after=None, limit=9)
    assert len(page.items) == 1


@pytest.mark.parametrize("key", [OWNER, THIEF])
async def test_a_worker_reports_on_no_other_host(
    driver: DispatcherDriver, thief: Stranger, key: str
) -> None:
    async with scripted_host(driver.broker, OWNER) as owner:
        await driver.submit(Verb.DEPLOY_CREATE)
        command = await accepted(driver, owner)
        await enrol(driver.broker, THIEF)
        await thief.publish(REPORTS.name, key, _end_of(owner, command))
        letter = await driver.dead_letter()
        expected = ErrorCode.FORBIDDEN if key == OWNER else ErrorCode.INVALID_REQUEST
        assert (letter.reason, letter.sender) == (expected, f"worker-{THIEF}")
        with pytest.raises(ModelyardError, match="asks workers for lost reports again"):
            refuse_unless_replayable(letter)
        await _goes_on(driver, owner, command)


@pytest.mark.parametrize("said", ["boot", "inventory", "question"])
async def test_a_worker_neither_boots_nor_looks_in_the_name_of_another(
    driver: DispatcherDriver, thief: Stranger, said: str
) -> None:
    """A boot would end everything that runs there; an empty look would fail its jobs."""
    engine = EngineFacts(version="20.10", api_version="1.41")
    async with scripted_host(driver.broker, OWNER) as owner:
        await driver.submit(Verb.DEPLOY_CREATE)
        command = await accepted(driver, owner)
        forged = WorkerReports(
            host_id=OWNER,
            incarnation=owner.incarnation if said == "inventory" else "stolen",
            number=owner.number + 1,
            online=HostOnline(slots=9, labels={}, engine=engine) if said == "boot" else None,
            inventory=Inventory(items=()) if said == "inventory" else None,
        )
        kind = OVERDUE_REPORTS_TYPE if said == "question" else None
        await thief.publish(REPORTS.name, OWNER, forged.model_dump_json().encode(), type=kind)
        assert (await driver.dead_letter()).reason == ErrorCode.FORBIDDEN
        host = await driver.store.hosts.get(OWNER)
        assert host is not None
        assert (host.incarnation, host.slots) == (owner.incarnation, 4)
        await _goes_on(driver, owner, command)


async def test_a_worker_gives_no_sign_of_life_for_another(
    driver: DispatcherDriver, thief: Stranger
) -> None:
    async with scripted_host(driver.broker, OWNER):
        await eventually(lambda: driver.store.hosts.get(OWNER))
        beat = Heartbeat(host_id=OWNER, incarnation="stolen", slots=40, labels={})
        hello = HostHello(host_id="h9", incarnation="stolen")
        own = Heartbeat(host_id=THIEF, incarnation="own", slots=1, labels={})
        with capture_logs() as logs:
            await thief.publish(HEARTBEATS.name, "", beat.model_dump_json().encode())
            await thief.publish(
                HEARTBEATS.name, "", hello.model_dump_json().encode(), type=HELLO_TYPE
            )
            await thief.publish(HEARTBEATS.name, "", own.model_dump_json().encode())

            async def both() -> bool:
                refused = [one for one in logs if one["event"] == "heartbeat.forbidden"]
                return len(refused) == 2

            await eventually(both, what="two refusals")
        host = await driver.store.hosts.get(OWNER)
        assert host is not None
        assert host.slots == 4
        assert not await driver.broker.has_queues([host_queue("h9").name])


@pytest.mark.parametrize("signs", [True, False])
async def test_a_worker_makes_no_dead_letter(
    driver: DispatcherDriver, users: Users, amqp_url: str, *, signs: bool
) -> None:
    """So that each letter without our headers comes from RabbitMQ itself."""
    user = f"worker-{THIEF}"
    own = Stranger(users.url(user, _vhost(amqp_url)), user, signs=signs)
    death = {"queue": JOBS_QUEUE.name, "reason": "delivery_limit", "count": 1}
    with pytest.raises(AMQPError, match="ACCESS_REFUSED"):
        await own.publish(
            DEAD.name,
            SUBMIT_KEY,
            b'{"job_id": "j", "operation_type": "TERMINATE"}',
            message_id="claimed",
            headers={"x-death": [death]},
        )
    assert await driver.store.operation_queries.get(operation_id_for_key("claimed")) is None


@pytest.mark.parametrize("reason", ["invalid_json", "no code of ours", None])
async def test_a_command_that_its_worker_could_not_read_is_a_dead_letter(
    driver: DispatcherDriver, users: Users, amqp_url: str, reason: str | None
) -> None:
    await enrol(driver.broker, OWNER)
    user = f"worker-{OWNER}"
    own = Stranger(users.url(user, _vhost(amqp_url)), user, signs=True)
    said = {REASON_HEADER: reason, DETAIL_HEADER: "It has no commands."} if reason else {}
    said |= {QUEUE_HEADER: JOBS_QUEUE.name, SENDER_HEADER: "gateway"}
    await own.publish(REPORTS.name, OWNER, b"{", type=UNREADABLE_TYPE, headers=said)
    letter = await driver.dead_letter()
    assert (letter.queue, letter.sender) == (host_queue(OWNER).name, user)
    assert not letter.from_modelyard
    assert letter.reason == (reason if reason == "invalid_json" else "invalid_request")
    assert letter.detail == ("It has no commands." if reason else "The worker gave no reason.")


async def test_a_worker_returns_no_command_of_another_host(
    driver: DispatcherDriver, thief: Stranger
) -> None:
    await enrol(driver.broker, OWNER)
    await thief.publish(REPORTS.name, OWNER, b"{", type=UNREADABLE_TYPE)
    assert (await driver.dead_letter()).reason == ErrorCode.FORBIDDEN


async def test_a_report_on_a_job_that_is_not_the_operations_is_no_fact(
    driver: DispatcherDriver,
) -> None:
    """Else a worker could tell all subscribers whatever it likes of others' jobs."""
    async with scripted_host(driver.broker, OWNER) as owner:
        await driver.submit(Verb.DEPLOY_CREATE)
        command = await accepted(driver, owner)
        forged = owner.made(command, OperationState.SUCCEEDED, seq=5)
        for other in ({"job_id": "victim"}, {"generation": 9}):
            message = WorkerReports(
                host_id=OWNER,
                incarnation=owner.incarnation,
                operations=(forged.model_copy(update=other),),
            )
            await driver.broker.publish(REPORTS, OWNER, message.model_dump_json().encode())
        await fenced_off(driver, OWNER, {"other_job": 1})
        await _goes_on(driver, owner, command)
        events = await driver.store.events.of_operation(command.operation_id)
        facts = [one for one in events if one.type != "operation.stale_report"]
        assert {one.job_id for one in facts} == {"job-1"}


async def test_a_worker_puts_nothing_back_into_the_queue(driver: DispatcherDriver) -> None:
    """Else its operation would go on past its deadline, and no failure would count."""
    async with scripted_host(driver.broker, OWNER) as owner:
        await driver.submit(Verb.DEPLOY_CREATE)
        command = await accepted(driver, owner)
        forged: list[tuple[OperationState, JobState | None]] = [
            (OperationState.QUEUED, None),
            (OperationState.DISPATCHED, None),
            (OperationState.FAILED, JobState.LOST),
        ]
        for number, (state, job_state) in enumerate(forged, start=1):
            await owner.report(command, state, seq=1 + number, job_state=job_state)
            await fenced_off(driver, OWNER, {"illegal": number})
        await _goes_on(driver, owner, command)


async def test_a_host_is_enrolled_by_its_own_workers_hello(
    driver: DispatcherDriver, thief: Stranger
) -> None:
    """The worker needs no right to declare anything; what it gets is its own host's."""
    hello = HostHello(host_id=THIEF, incarnation="own").model_dump_json().encode()
    wanted = [queue.name for queue in queues_of_host(THIEF)]
    assert not await driver.broker.has_queues(wanted)
    await thief.publish(HEARTBEATS.name, "", hello, type=HELLO_TYPE)
    await eventually(lambda: driver.broker.has_queues(wanted), what="the queues of the host")


async def test_the_documented_rights_are_enough_to_answer_a_publisher(
    users: Users, amqp_url: str, store: Store
) -> None:
    vhost = _vhost(amqp_url)
    leading = Broker(users.url("dispatcher", vhost), name="dispatcher")
    await store.models.put(MODEL)
    try:
        async with (
            running_dispatcher(store, leading),
            await aio_pika.connect(users.url(PUBLISHER, vhost)) as connection,
        ):
            channel = await connection.channel(publisher_confirms=False)
            heard: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()
            direct = await channel.get_queue("amq.rabbitmq.reply-to", ensure=False)
            await direct.consume(heard.put, no_ack=True)
            jobs = await channel.get_exchange(JOBS.name, ensure=False)
            body = b'{"job_id": "j", "operation_type": "TERMINATE"}'
            asked = aio_pika.Message(body, reply_to=direct.name, correlation_id="c")
            await jobs.publish(asked, SUBMIT_KEY)
            async with asyncio.timeout(20):
                told = await heard.get()
            assert told.correlation_id == "c"
            assert told.user_id == "dispatcher"
            for queue in (JOBS_QUEUE.name, host_queue(OWNER).name):
                signed = aio_pika.Message(body, message_id=queue, reply_to=queue)
                await jobs.publish(signed, SUBMIT_KEY)
                driver = DispatcherDriver(store, leading)
                operation_id = operation_id_for_key(queue)
                await driver.operation(operation_id, OperationState.REJECTED)
    finally:
        await leading.close()


async def test_a_dispatcher_that_may_not_answer_still_publishes_its_events(
    users: Users, amqp_url: str, rabbitmq: RabbitMQ
) -> None:
    """Its user has the rights of an older version."""
    vhost = _vhost(amqp_url)
    rights = ["dispatcher", "^modelyard\\.", "^modelyard\\.", "^modelyard\\."]
    rabbitmq.ctl("set_permissions", "-p", vhost, *rights)
    older = Broker(users.url("dispatcher", vhost), name="dispatcher")
    guest = Broker(amqp_url, name="guest")
    await older.declare([JOBS_QUEUE], exchanges=[EVENTS])
    try:
        with capture_logs() as logs:
            async with guest.tap(EVENTS, ["#"]) as events:
                for number in range(3):
                    with suppress(BrokerUnavailableError):
                        await older.reply([DirectReply("amq.gen-x", None, b"r")], message_type="t")
                    body = str(number).encode()
                    await older.publish_unconfirmed(EVENTS, [("a.b", body)], message_type="t")
                heard: list[bytes] = []
                async with asyncio.timeout(20):
                    async for batch in events.batches(max_items=9):
                        heard += [one.body for one in batch]
                        await events.ack(batch)
                        if len(heard) == 3:
                            break
            assert heard == [b"0", b"1", b"2"]

            async def refused() -> bool:
                return any(one["event"] == "replies.refused" for one in logs)

            await eventually(refused, what="a log line")
    finally:
        await older.close()
        await guest.close()
