"""What one inference on a loaded model costs the real servers, as their clients count it.

The real gateway, dispatcher and worker run on a real RabbitMQ and a real MongoDB; only the engine
is in memory. `tests/statemachine/test_one_inference.py` counts the same with all servers in memory,
and also what waits for what. All that is periodic rests meanwhile, but the renewal of the leader's
lease, which is not counted.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from pamqp.commands import Basic
from pymongo import monitoring
from pymongo.uri_parser import parse_uri

from modelyard.broker import Broker
from modelyard.contract.states import Verb
from modelyard.contract.topology import HOSTS, JOBS, REPORTS
from modelyard.store import Store
from tests.support.dispatcher.driver import running_dispatcher
from tests.support.gateway import ServedGateway, serving
from tests.support.waiting import eventually
from tests.support.worker.harness import HOST, VerbHarness
from worker.attempts.journal import AttemptJournal
from worker.model_server.client import ModelServer
from worker.service import Worker
from worker.session.lease import Lease
from worker.session.relist import InventoryLoop
from worker.settings import WorkerSettings

OF_AN_INFERENCE = {"write": 4, "message": 3, "ack": 3}
"""Commands to MongoDB, persistent messages that RabbitMQ has confirmed, and acknowledgements of
them. There is no "read" among them."""
TRIES = 5
QUIET_S = 0.3
"""Seconds without any call after which all that was begun is done."""
NEVER_S = 3_600.0

WRITES = {"insert", "update", "delete", "findAndModify", "bulkWrite"}
READS = {"find", "aggregate", "count", "distinct", "getMore", "hello", "ping"}
JOB = "j-1"


class Commands(monitoring.CommandListener):
    """Hears of the commands to one database, in the driver's threads."""

    def __init__(self) -> None:
        self.database = ""
        self.begun: list[tuple[str, object]] = []
        """Names of commands, and their collections."""
        self.ended: list[int] = []

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if event.database_name == self.database:
            self.begun.append((event.command_name, event.command.get(event.command_name)))

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        if event.database_name == self.database:
            self.ended.append(event.request_id)

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        if event.database_name == self.database:
            self.ended.append(event.request_id)


class Calls:
    """What the clients of both servers have counted."""

    def __init__(self, commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands = commands
        self._messages: Counter[str] = Counter()
        publish, ack = aio_pika.Exchange.publish, aio_pika.IncomingMessage.ack

        async def counted_publish(
            exchange: aio_pika.Exchange, message: aio_pika.Message, *args: Any, **more: Any
        ) -> object:
            confirmation = await publish(exchange, message, *args, **more)
            persistent = message.delivery_mode is aio_pika.DeliveryMode.PERSISTENT
            self._messages["message"] += persistent and isinstance(confirmation, Basic.Ack)
            return confirmation

        async def counted_ack(message: aio_pika.IncomingMessage, multiple: bool = False) -> None:  # noqa: FBT001, FBT002
            await ack(message, multiple)
            # Others come by queues that end with their consumers.
            self._messages["ack"] += message.exchange in {JOBS.name, HOSTS.name, REPORTS.name}

        monkeypatch.setattr(aio_pika.Exchange, "publish", counted_publish)
        monkeypatch.setattr(aio_pika.IncomingMessage, "ack", counted_ack)

    @property
    def made(self) -> Counter[str]:
        """All that were made, by kind; commands that are neither reads nor writes by name."""
        commands = Counter(
            "write" if name in WRITES else "read" if name in READS else name
            for name, collection in tuple(self.commands.begun)
            if collection != "leases"
        )
        return commands + self._messages

    async def quiet(self) -> None:
        """Return once nothing is called any more."""
        clock = asyncio.get_running_loop().time
        made, since = self.made, clock()

        async def nothing_new() -> bool:
            nonlocal made, since
            before, made = made, self.made
            if made != before or len(self.commands.begun) > len(self.commands.ended):
                since = clock()
            return clock() - since > QUIET_S

        await eventually(nothing_new, what="quiet")


@pytest.fixture(autouse=True)
def rests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let periodic work rest, and nothing else depend on how quick this machine is."""
    for name in (
        "dispatcher.maintenance.idle_unloads.INTERVAL_S",
        "dispatcher.maintenance.retention.retention.REST_S",
        "modelyard.store.ASK_TIME_EVERY_S",  # of those who ask so that nobody else has to
        # An inference that takes long has events of its own, and reports that it runs.
        "dispatcher.events.LINGER_S",
        "worker.attempts.attempt.QUIET_S",
    ):
        monkeypatch.setattr(name, NEVER_S)
    monkeypatch.setattr(InventoryLoop.run, "__kwdefaults__", {"interval_s": NEVER_S})
    # Who needs the database's time, reads it.
    monkeypatch.setattr("modelyard.store.connection.ASK_TIME_EVERY_S", 0.0)


@pytest.fixture(scope="module")
def commands() -> Commands:
    """Have all clients that are made from now on tell of their commands; they can't unlearn it."""
    made = Commands()
    monitoring.register(made)
    return made


@pytest.fixture
def calls(commands: Commands, monkeypatch: pytest.MonkeyPatch, mongo_url: str) -> Calls:
    """Count the calls of all clients that are made from now on."""
    commands.database = parse_uri(mongo_url)["database"]
    return Calls(commands, monkeypatch)


@pytest.fixture
async def served(
    calls: Calls,  # noqa: ARG001 - counts from before the first client is made
    mongo_url: str,
    amqp_url: str,
    tmp_path: Path,
) -> AsyncIterator[ServedGateway]:
    """Serve a gateway beside a dispatcher and a worker that has one job with its model loaded."""
    harness = VerbHarness()
    harness.runtime.tells_changes = False  # else the worker takes inventories
    store = Store(mongo_url, name="dispatcher", timeout_s=10.0)
    brokers = [Broker(amqp_url, name=name) for name in ("dispatcher", "worker")]
    worker = Worker(
        WorkerSettings(host_id=HOST, worker_allowed_images=("*",), worker_devices=()),
        broker=brokers[1],
        runtime=harness.runtime,
        server=ModelServer(harness.runtime.model_servers),
        journal=AttemptJournal(tmp_path / "attempts"),
        new_lease=partial(Lease, renewal_interval_s=NEVER_S),
    )
    async with serving(mongo_url, amqp_url) as served:
        await served.store.models.put(harness.spec)
        async with running_dispatcher(store, brokers[0], dispatcher_sweep_interval_s=60.0):
            working = asyncio.create_task(worker.run(asyncio.Event()))
            try:
                await done(served, Verb.DEPLOY_CREATE, model=harness.spec.name)
                await done(served, Verb.DEPLOY_LOAD)
                await infer(served)
                await eventually(partial(has_beaten, served), what="the only heartbeat")
                yield served
            finally:
                working.cancel()
                await asyncio.wait([working])
    for broker in brokers:
        await broker.close()
    store.close()


async def has_beaten(served: ServedGateway) -> bool:
    host = await served.store.hosts.get(HOST)
    return host is not None and host.measured_at is not None


async def done(served: ServedGateway, verb: Verb, **more: object) -> None:
    request = {"job_id": JOB, "operation_type": verb, **more}
    answer = await served.submit(request, Prefer="wait=60")
    assert (answer.status_code, answer.json()["state"]) == (200, "SUCCEEDED"), answer.text


async def infer(served: ServedGateway) -> None:
    await done(served, Verb.INFER, input={"x": 1})


async def test_an_inference_makes_four_writes_no_read_and_three_persistent_messages(
    served: ServedGateway, calls: Calls
) -> None:
    await calls.quiet()
    before, begun = calls.made, len(calls.commands.begun)
    for _ in range(TRIES):
        await infer(served)
    await calls.quiet()
    expected = {kind: count * TRIES for kind, count in OF_AN_INFERENCE.items()}
    assert calls.made - before == expected, calls.commands.begun[begun:]
