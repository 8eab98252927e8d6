"""A fleet whose processes are users of their own, made by `modelyard rabbitmq definitions`."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aiormq.exceptions import ChannelAccessRefused, ChannelPreconditionFailed

from deploy.local.docker_engine import DockerEngine
from deploy.local.mongodb import MongoDB
from deploy.local.rabbitmq import RabbitMQ
from modelyard.contract.rabbitmq.definitions import SHARED_QUEUES
from modelyard.contract.topology import (
    DEAD,
    DEAD_QUEUE,
    EVENTS,
    EXCHANGES,
    HEARTBEATS,
    HOSTS,
    JOBS,
    JOBS_QUEUE,
    REPORTS,
    SUBMIT_KEY,
    Queue,
    queues_of_host,
)
from tests.e2e.catalog import PROBE, PROBES
from tests.e2e.fleet import Fleet, User, a_user_of
from tests.support.servers.rabbitmq_users import Users
from tests.support.waiting import eventually

HOST, OTHER = "gpu-7", "gpu-8"
QUEUES = (*SHARED_QUEUES, *queues_of_host(HOST), *queues_of_host(OTHER))
BUSY, IDLE = "busy", "idle"
DEFAULT = ""
"""The exchange without a name, by which every queue could be reached."""


@pytest.fixture(scope="module")
def users(rabbitmq: RabbitMQ, folder: Path) -> Iterator[Users]:
    """Make two virtual hosts with the same users: a fleet runs on one, and nothing on the other."""
    own = folder / "users"
    own.mkdir()
    made = Users(
        rabbitmq, own, hosts=[HOST, OTHER], publishers=["frontend"], subscribers=["billing"]
    )
    made.enter(BUSY, IDLE)
    yield made
    made.leave(BUSY, IDLE)


@pytest.fixture(scope="module")
def limited(
    folder: Path,
    users: Users,
    mongodb: MongoDB,
    engine: DockerEngine,
    second_engine: DockerEngine,
) -> Iterator[Fleet]:
    """Start a fleet in which each process has a user of its own."""
    own = {"gateway": "gateway", "dispatcher": "dispatcher"}
    own |= {f"worker-{host}": f"worker-{host}" for host in (HOST, OTHER)}
    made = Fleet(
        folder / "limited",
        amqp_url=users.url("frontend", BUSY),
        mongo_url=mongodb.url.replace("/modelyard?", "/permissions?"),
        engines={HOST: engine, OTHER: second_engine},
        settings={
            name: {"MODELYARD_AMQP_URL": users.url(user, BUSY)} for name, user in own.items()
        },
    )
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
async def user(limited: Fleet) -> AsyncIterator[User]:
    """Give the test someone who uses that fleet."""
    async with a_user_of(limited) as someone:
        await someone.put_model("probe-http", image=PROBE, **PROBES["probe-http"])
        yield someone


async def test_a_fleet_works_with_the_documented_permissions(
    user: User, users: Users, rabbitmq: RabbitMQ
) -> None:
    async with await aio_pika.connect(users.url("billing", BUSY)) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("billing.ends", exclusive=True)
        await queue.bind(EVENTS.name, "operation.succeeded")
        job_id = user.job_id()
        for verb in ("DEPLOY_CREATE", "DEPLOY_LOAD"):
            await user.done(verb, job_id, model="probe-http")
        body = {"job_id": job_id, "operation_type": "INFER", "input": {"tag": "x"}}
        published = await user.publish(body, key=f"by-amqp-{job_id}")
        assert (await user.ended(published))["state"] == "SUCCEEDED"
        slow = await user.submit("INFER", job_id, input={"sleep": 30})
        await eventually(lambda: _runs(user, slow), within_s=30)
        assert (await user.http.post(f"/v1/operations/{slow}/cancel")).status_code == 202
        assert (await user.ended(slow))["state"] == "CANCELLED"
        await user.done("TERMINATE", job_id)
        told = [await queue.get(timeout=5) for _ in range(4)]
        assert {message.routing_key for message in told} == {"operation.succeeded"}
    await user.publish(None, key=f"unread-{job_id}", raw=b"{")
    letter = await eventually(lambda: _letter(user), within_s=30)
    assert (await user.http.post(f"/v1/dead-letters/{letter}/replay")).status_code == 202
    # Nobody was refused anything, also not what is tried again without a word.
    everybody = "|".join(map(re.escape, users.passwords))
    refused = rf"access to .+ refused for user '({everybody})'"
    assert re.findall(refused, rabbitmq.daemon.log.read_text()) == []


async def _runs(user: User, operation_id: str) -> bool:
    answer = await user.http.get(f"/v1/operations/{operation_id}")
    return bool(answer.json()["state"] == "RUNNING")


async def _letter(user: User) -> str | None:
    page = (await user.http.get("/v1/dead-letters")).json()
    return page["dead_letters"][0]["dead_letter_id"] if page["dead_letters"] else None


Act = Callable[[AbstractChannel], Awaitable[object]]


def _declares(queue: Queue) -> Act:
    arguments: Any = dict(queue.arguments)
    return lambda channel: channel.declare_queue(queue.name, durable=True, arguments=arguments)


def _empties(queue: Queue) -> Act:
    async def act(channel: AbstractChannel) -> None:
        await (await channel.get_queue(queue.name, ensure=False)).purge()

    return act


def _consumes(queue: Queue) -> Act:
    async def drop(_: AbstractIncomingMessage) -> None:
        pass

    async def act(channel: AbstractChannel) -> None:
        found = await channel.get_queue(queue.name, ensure=False)
        await found.cancel(await found.consume(drop))

    return act


def _binds(queue: Queue) -> Act:
    async def act(channel: AbstractChannel) -> None:
        found = await channel.get_queue(queue.name, ensure=False)
        await found.bind(queue.exchange.name, queue.routing_key)

    return act


def _publishes(exchange: str, routing_key: str) -> Act:
    async def act(channel: AbstractChannel) -> None:
        target = (
            channel.default_exchange
            if exchange == DEFAULT
            else await channel.get_exchange(exchange, ensure=False)
        )
        await target.publish(aio_pika.Message(b"{}"), routing_key, mandatory=False)

    return act


def _taps(exchange: str) -> Act:
    async def act(channel: AbstractChannel) -> None:
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(exchange, "#")

    return act


def _acts() -> dict[str, Act]:
    """Return everything that somebody might try, by what it is called in the tables below."""
    acts: dict[str, Act] = {}
    for queue in QUEUES:
        acts[f"declare {queue.name}"] = _declares(queue)
        acts[f"empty {queue.name}"] = _empties(queue)
        acts[f"consume {queue.name}"] = _consumes(queue)
        acts[f"bind {queue.name}"] = _binds(queue)
        acts[f"publish to {queue.name} by the default exchange"] = _publishes(DEFAULT, queue.name)
    for exchange in EXCHANGES:
        acts[f"tap {exchange.name}"] = _taps(exchange.name)
        acts[f"declare {exchange.name}"] = lambda channel, one=exchange: (  # type: ignore[misc]
            channel.declare_exchange(one.name, one.type.value, durable=True)
        )
        key = SUBMIT_KEY if exchange is JOBS else HOST
        acts[f"publish to {exchange.name}"] = _publishes(exchange.name, key)
    acts[f"publish to {JOBS.name} by another key"] = _publishes(JOBS.name, HOST)
    for ours in (JOBS.name, REPORTS.name, DEAD.name):
        acts[f"declare billing.letters that go to {ours}"] = lambda channel, to=ours: (  # type: ignore[misc]
            channel.declare_queue("billing.letters", arguments={"x-dead-letter-exchange": to})
        )
        acts[f"declare billing.detour that ends in {ours}"] = lambda channel, to=ours: (  # type: ignore[misc]
            channel.declare_exchange("billing.detour", arguments={"alternate-exchange": to})
        )
    for name in ("billing.ends", "billing.eu.ends", "mine"):
        acts[f"declare {name}"] = lambda channel, name=name: (  # type: ignore[misc]
            channel.declare_queue(name, auto_delete=True)
        )
    return acts


ACTS = _acts()
EVERYTHING_OF_OURS = {
    # By the default exchange, too: that is how publishers are answered.
    act
    for act in ACTS
    if not act.startswith(("tap ", "declare billing", "declare mine"))
}
ALLOWED: dict[str, set[str]] = {
    # It answers publishers at their `reply_to`, through the default exchange.
    "dispatcher": EVERYTHING_OF_OURS | {act for act in ACTS if "default exchange" in act},
    "gateway": {
        *(f"{what} {JOBS_QUEUE.name}" for what in ("declare", "empty", "consume", "bind")),
        *(f"{what} {DEAD_QUEUE.name}" for what in ("declare", "bind")),
        *(f"declare {exchange.name}" for exchange in (JOBS, DEAD, EVENTS)),
        *(f"tap {exchange.name}" for exchange in (JOBS, DEAD, EVENTS)),
        f"publish to {JOBS.name}",
        f"publish to {JOBS.name} by another key",
        f"publish to {DEAD.name}",
    },
    f"worker-{HOST}": {
        *(
            f"{what} {queue.name}"
            for what in ("empty", "consume")
            for queue in queues_of_host(HOST)
        ),
        *(f"publish to {exchange.name}" for exchange in (REPORTS, HEARTBEATS)),
    },
    "frontend": {f"publish to {JOBS.name}"},
    "billing": {"declare billing.ends"},
}


@pytest.mark.parametrize("who", ALLOWED)
async def test_each_right_of_each_user_is_what_is_documented_and_no_other(
    users: Users, who: str
) -> None:
    """Try everything; what RabbitMQ lets this user do is exactly what its role needs."""
    allowed = set()
    async with await aio_pika.connect(users.url(who, IDLE)) as connection:
        for name, act in ACTS.items():
            channel = await connection.channel()
            try:
                await act(channel)
            except ChannelAccessRefused:
                continue
            allowed.add(name)
            await channel.close()
    assert allowed == ALLOWED[who]


@pytest.mark.parametrize("who", ["frontend", f"worker-{HOST}", "billing"])
async def test_nobody_signs_as_somebody_else(users: Users, who: str) -> None:
    exchange = {"frontend": JOBS.name, "billing": EVENTS.name}.get(who, REPORTS.name)
    async with await aio_pika.connect(users.url(who, IDLE)) as connection:
        channel = await connection.channel()
        target = await channel.get_exchange(exchange, ensure=False)
        signed = aio_pika.Message(b"{}", user_id="dispatcher")
        with pytest.raises((ChannelPreconditionFailed, ChannelAccessRefused)):
            await target.publish(signed, SUBMIT_KEY)


async def test_the_subscriber_hears_events_and_touches_no_other_queue(users: Users) -> None:
    async with await aio_pika.connect(users.url("billing", IDLE)) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("billing.all", exclusive=True)
        await queue.bind(EVENTS.name, "#")
        for other in (HEARTBEATS.name, HOSTS.name, REPORTS.name, JOBS.name, DEAD.name):
            refused = await connection.channel()
            mine = await refused.get_queue("billing.all", ensure=False)
            with pytest.raises(ChannelAccessRefused):
                await mine.bind(other, "#")


@pytest.mark.parametrize("other", [OTHER, f"{HOST}.control", f"{HOST}.v1", f"control.{HOST}"])
def test_no_two_hosts_share_a_queue_or_a_routing_key(other: str) -> None:
    """What the table above says of one host's worker is said of every one's."""
    ours, theirs = queues_of_host(HOST), queues_of_host(other)
    assert not {queue.name for queue in ours} & {queue.name for queue in theirs}
    assert not {queue.routing_key for queue in ours} & {queue.routing_key for queue in theirs}
