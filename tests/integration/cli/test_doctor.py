"""The doctor on real servers, and on servers that are not as they should be."""

import asyncio
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pymongo import MongoClient

from deploy.local.daemon import Daemon
from deploy.local.mongodb import MongoDB, find_mongod
from deploy.local.ports import free_port
from deploy.local.rabbitmq import RabbitMQ
from deploy.local.replica_set import version
from dispatcher.service import QUEUES
from modelyard.broker import Broker
from modelyard.broker.doctor import BrokerDuties, check_broker
from modelyard.contract.topology import EXCHANGES, JOBS, JOBS_QUEUE, REPORTS, Queue, queues_of_host
from modelyard.doctor.diagnosis import Diagnosis, Verdict
from modelyard.store.doctor.server import check_database
from tests.support.servers.rabbitmq_users import Users

HOST = "gpu-7"
VHOST = "doctor"
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Examined:
    """What the command `modelyard doctor` said."""

    code: int
    rows: Rows
    err: str

    def verdicts(self, about: str) -> set[str]:
        return {one["verdict"] for one in self.rows if one["about"] == about}


async def doctor(service: str, **variables: str) -> Examined:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MODELYARD_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "modelyard.cli", "--json", "doctor", "--service", service),
        env={**clean, **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return Examined(process.returncode, json.loads(out), err.decode())


def only(found: Sequence[Diagnosis], verdict: Verdict) -> list[Diagnosis]:
    kept = [one for one in found if one.verdict is verdict]
    assert all(one.advice for one in kept) or verdict is Verdict.OK
    return kept


def failures(found: Sequence[Diagnosis]) -> str:
    """Return what is said of the failures, with its advice."""
    return "\n".join(f"{one.seen}; {one.advice}" for one in only(found, Verdict.FAILURE))


def duties(*needs: Queue) -> BrokerDuties:
    return BrokerDuties(publishes_to=JOBS, declares=QUEUES, needs=needs)


@pytest.fixture(scope="module")
def users(rabbitmq: RabbitMQ, folder: Path) -> Iterator[Users]:
    """Make the users with the rights that Modelyard documents."""
    own = folder / "doctor-users"
    own.mkdir()
    made = Users(rabbitmq, own, hosts=[HOST])
    made.enter(VHOST)
    yield made
    made.leave(VHOST)


@pytest.mark.parametrize("service", ["gateway", "dispatcher"])
async def test_a_machine_that_is_ready_has_no_failure_and_its_exit_code_is_0(
    service: str, amqp_url: str, mongo_url: str
) -> None:
    broker = Broker(amqp_url, name="test")
    await broker.declare(QUEUES, exchanges=EXCHANGES)
    said = await doctor(service, MODELYARD_AMQP_URL=amqp_url, MODELYARD_MONGO_URL=mongo_url)
    assert said.code == 0, said.rows
    assert said.verdicts("broker") == {"ok"}
    assert said.verdicts("clock") == {"ok"}
    assert said.err == ""
    seen = " / ".join(one["seen"] for one in said.rows)
    assert "may declare modelyard.jobs.v1" in seen
    assert "is the primary of the replica set rs0" in seen
    # The tests' database has no users: whoever reaches it may write to it.
    assert said.verdicts("database") == {"ok", "warning"}
    await broker.close()


async def test_a_stopped_server_and_an_unknown_variable_are_told_with_what_to_do(
    mongo_url: str,
) -> None:
    said = await doctor(
        "gateway",
        MODELYARD_AMQP_URL=f"amqp://guest:canary@127.0.0.1:{free_port()}",
        MODELYARD_MONGO_URL=mongo_url,
        MODELYARD_GATEWAY_PROT="80",
    )
    assert said.code == 1
    assert said.err == ""
    [broker] = [one for one in said.rows if one["about"] == "broker"]
    assert (broker["verdict"], broker["service"]) == ("failure", "gateway")
    assert "can't be reached" in broker["seen"]
    assert "Check that RabbitMQ runs" in broker["advice"]
    [unknown] = [one for one in said.rows if one["verdict"] == "warning" and "PROT" in one["seen"]]
    assert unknown["advice"] == "Perhaps MODELYARD_GATEWAY_PORT is meant."
    assert "canary" not in json.dumps(said.rows)


async def test_settings_that_can_not_be_used_are_the_only_failure() -> None:
    said = await doctor("gateway", MODELYARD_GATEWAY_PORT="many")
    assert said.code == 1
    [failed] = said.rows
    assert failed["about"] == "configuration"
    assert failed["seen"].startswith("MODELYARD_GATEWAY_PORT is wrong")


@pytest.mark.parametrize("user", ["gateway", "dispatcher"])
async def test_each_user_of_the_definitions_may_do_its_duty(users: Users, user: str) -> None:
    declares = QUEUES if user == "dispatcher" else [JOBS_QUEUE]
    found = await check_broker(users.url(user, VHOST), BrokerDuties(JOBS, declares))
    assert {one.verdict for one in found} == {Verdict.OK}, found


async def test_the_worker_of_the_definitions_may_report_and_finds_its_queues(
    users: Users,
) -> None:
    url = users.url(f"worker-{HOST}", VHOST)
    found = await check_broker(url, BrokerDuties(REPORTS, needs=queues_of_host(HOST)))
    assert {one.verdict for one in found} == {Verdict.OK}, found
    other = await check_broker(url, BrokerDuties(REPORTS, needs=queues_of_host("gpu-8")))
    assert len(only(other, Verdict.WARNING)) == 2


async def test_a_user_without_the_rights_is_told_which_are_missing(
    users: Users,
) -> None:
    said = failures(await check_broker(users.url(f"worker-{HOST}", VHOST), duties()))
    assert "may not publish to modelyard.jobs" in said
    assert "may not declare modelyard.jobs.v1" in said
    assert "modelyard rabbitmq definitions" in said


async def test_a_wrong_password_and_a_wrong_virtual_host_are_told_apart(amqp_url: str) -> None:
    wrong = amqp_url.replace("guest:guest", "guest:canary")
    assert wrong != amqp_url
    said = failures(await check_broker(wrong, duties()))
    assert "refuses the user guest or the password" in said
    assert "canary" not in said
    said = failures(await check_broker(f"{amqp_url}-absent", duties()))
    assert "-absent" in said
    assert "Correct the virtual host" in said


async def test_before_the_first_dispatcher_missing_queues_are_no_failure(amqp_url: str) -> None:
    found = await check_broker(amqp_url, duties())
    assert only(found, Verdict.FAILURE) == []
    assert "does not exist yet" in only(found, Verdict.WARNING)[0].seen


async def test_a_queue_with_other_arguments_is_a_failure(amqp_url: str) -> None:
    broker = Broker(amqp_url, name="test")
    await broker.declare(
        [Queue(JOBS_QUEUE.name, JOBS, JOBS_QUEUE.routing_key, {"x-queue-type": "classic"})]
    )
    found = await check_broker(amqp_url, BrokerDuties(JOBS, [JOBS_QUEUE]))
    assert "modelyard.jobs.v1 has other arguments" in failures(found)
    await broker.close()


async def test_an_alarm_of_the_broker_is_a_failure(rabbitmq: RabbitMQ, amqp_url: str) -> None:
    broker = Broker(amqp_url, name="test")
    await broker.declare(QUEUES, exchanges=EXCHANGES)
    await asyncio.to_thread(rabbitmq.ctl, "set_vm_memory_high_watermark", "0")
    try:
        async with asyncio.timeout(30):
            while not (said := failures(await check_broker(amqp_url, BrokerDuties(JOBS)))):
                pass  # RabbitMQ looks at its memory once a second
    finally:
        await asyncio.to_thread(rabbitmq.ctl, "set_vm_memory_high_watermark", "0.4")
    assert "takes no messages" in said
    assert "rabbitmq-diagnostics alarms" in said
    async with asyncio.timeout(30):
        while failures(await check_broker(amqp_url, BrokerDuties(JOBS))):
            pass
    await broker.close()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a mongod that is in no replica set and asks for passwords; return its address."""
    folder, port = tmp_path_factory.mktemp("guarded"), free_port()
    daemon = Daemon("mongod-guarded", folder)
    daemon.claim()
    options = ["--auth", "--bind_ip", "127.0.0.1", "--nounixsocket"]
    address = ["--port", str(port), "--dbpath", str(folder), "--wiredTigerCacheSizeGB", "0.25"]
    daemon.spawn([find_mongod(), *address, *options], dict(os.environ))
    daemon.wait_ready(lambda: version(port) is not None, 60)
    client: MongoClient[dict[str, Any]] = MongoClient(f"mongodb://127.0.0.1:{port}")
    everything = [{"role": "root", "db": "admin"}]
    client.admin.command("createUser", "root", pwd="pass", roles=everything)
    client.close()
    with MongoClient[dict[str, Any]](f"mongodb://root:pass@127.0.0.1:{port}") as client:
        for name, role in (("writer", "readWrite"), ("reader", "read")):
            client["yard"].command("createUser", name, pwd="pass", roles=[role])
    yield f"127.0.0.1:{port}"
    daemon.stop(10)


@pytest.fixture
def with_set(mongodb: MongoDB) -> str:
    """Return the address of a member of a replica set."""
    return urlsplit(mongodb.url).netloc


async def test_a_mongod_without_a_replica_set_is_a_failure_whatever_the_url_says(
    guarded: str,
) -> None:
    for options in ("", "?replicaSet=rs0"):
        found = await check_database(f"mongodb://writer:pass@{guarded}/yard{options}")
        said = failures(found)
        assert "is not a member of a replica set" in said
        assert "rs.initiate()" in said


async def test_a_wrong_password_of_the_database_is_told_and_not_repeated(guarded: str) -> None:
    found = await check_database(f"mongodb://writer:canary@{guarded}/yard")
    assert "refuses the user or the password" in failures(found)
    assert "canary" not in failures(found)


async def test_a_user_who_may_only_read_is_a_failure_and_one_who_may_write_is_well(
    guarded: str,
) -> None:
    found = await check_database(f"mongodb://reader:pass@{guarded}/yard")
    assert "reader may not createCollection, createIndex, insert, remove, update" in failures(found)
    found = await check_database(f"mongodb://writer:pass@{guarded}/yard")
    assert any("writer may read and write yard" in one.seen for one in only(found, Verdict.OK))


async def test_the_name_of_another_replica_set_is_a_failure(with_set: str) -> None:
    found = await check_database(f"mongodb://{with_set}/yard?replicaSet=other")
    assert "is in the replica set rs0, and not in other" in failures(found)
    assert "Write replicaSet=rs0" in failures(found)


async def test_a_database_that_does_not_answer_is_a_failure() -> None:
    found = await check_database(f"mongodb://127.0.0.1:{free_port()}/yard")
    assert "does not answer" in failures(found)
    assert "Check that mongod runs" in failures(found)


@pytest.mark.parametrize("url", ["mongodb://u:can/ary@h/x", "mongodb://"])
async def test_a_url_of_the_database_that_can_not_be_used_is_not_repeated(url: str) -> None:
    found = await check_database(url)
    assert "the URL can't be used" in failures(found)
    assert "ary" not in failures(found)
