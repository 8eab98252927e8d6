"""The private servers, for real: ready when they say so, faithful to their ports, gone at last."""

from __future__ import annotations

import asyncio
import io
import ipaddress
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aio_pika
import httpx2
import pytest
from aio_pika.exceptions import ChannelPreconditionFailed
from pymongo import MongoClient

from deploy.local import engine_api, packages
from deploy.local.amqp_probe import broker_version
from deploy.local.docker_engine import DockerEngine
from deploy.local.errors import StackError, StartFailed
from deploy.local.mongodb import MongoDB
from deploy.local.ports import accepts
from deploy.local.processes import ProcessId
from deploy.local.rabbitmq import RabbitMQ
from deploy.local.waiting import wait_until
from modelyard.contract.messages import MAX_BATCH_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

ADDRESS = re.compile(r"\b\d+\.\d+\.\d+\.\d+\b")
BRIDGE_OPTION = "com.docker.network.bridge.enable_icc=false"


@pytest.fixture(scope="module", autouse=True)
def programs() -> None:
    packages.ensure([*packages.BROKER, *packages.ENGINE, *packages.IMAGES], print)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Make a folder that the account of RabbitMQ may enter, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="modelyard-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def traces(folder: Path) -> list[str]:
    """List what a server that was started in `folder` has left in the kernel."""
    left = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        except OSError:
            continue  # gone, or not ours
        if str(folder).encode() in text:
            left.append(f"process {process.name}")
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return left + [line for line in mounts if str(folder) in line]


def run(*command: str, stdin: bytes | None = None) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr.decode()}"
    return done.stdout.decode().strip()


# RabbitMQ


def test_a_broker_keeps_its_port_through_restart_and_crash_and_leaves_nothing(folder: Path) -> None:
    broker = RabbitMQ(folder / "rabbitmq")
    broker.start()
    url = broker.url
    assert broker_version(url) == broker.version
    broker.ctl("eval", 'rabbit_amqqueue:declare(rabbit_misc:r(<<"/">>, queue, <<"kept">>), true, '
               'false, [], none, <<"test">>).')  # fmt: skip
    assert broker.queue_counts("nobody-declared-this") is None

    broker.kill()
    assert broker_version(url) is None
    broker.start()
    assert broker.url == url
    counts = broker.queue_counts("kept")
    assert counts
    assert (counts.messages, counts.consumers) == (0, 0)

    broker.stop()
    broker.stop()
    assert not accepts(broker.port)
    assert traces(folder) == []


async def test_a_broker_refuses_a_larger_message_than_is_valid_and_disturbs_nobody_else(
    folder: Path,
) -> None:
    broker = RabbitMQ(folder / "rabbitmq")
    try:
        await asyncio.to_thread(broker.start)
        others, hasty = [await aio_pika.connect(broker.url) for _ in range(2)]
        async with others, hasty:
            channel, large = await others.channel(), await hasty.channel()
            queue = await channel.declare_queue("q")
            most = bytes(MAX_BATCH_BYTES)
            await large.default_exchange.publish(aio_pika.Message(most), queue.name)
            with pytest.raises(ChannelPreconditionFailed, match="larger than"):
                await large.default_exchange.publish(aio_pika.Message(most + b"x"), queue.name)
            await channel.default_exchange.publish(aio_pika.Message(b"small"), queue.name)
            taken = [await queue.get(no_ack=True) for _ in range(2)]
            assert [len(one.body) for one in taken] == [len(most), 5]
            assert await queue.get(fail=False) is None
            again = await hasty.channel()
            await again.default_exchange.publish(aio_pika.Message(b"again"), queue.name)
    finally:
        await asyncio.to_thread(broker.stop)


def test_a_paused_broker_is_silent_until_it_is_resumed_and_can_be_stopped(folder: Path) -> None:
    broker = RabbitMQ(folder / "rabbitmq")
    try:
        broker.start()
        broker.pause()
        assert accepts(broker.port), "the kernel still takes connections for it"
        assert broker_version(broker.url, timeout_s=0.3) is None
        broker.resume()
        assert broker_version(broker.url) == broker.version
        broker.pause()
    finally:
        broker.stop()
    assert traces(folder) == []


def test_a_broker_that_cannot_start_shows_its_log_and_leaves_nothing(folder: Path) -> None:
    broker = RabbitMQ(folder / "rabbitmq")
    (folder / "rabbitmq").mkdir()
    (folder / "rabbitmq" / "mnesia").write_text("not a folder")
    with pytest.raises(StartFailed, match="The end of "):
        broker.start()
    assert traces(folder) == []


# MongoDB


def test_a_replica_set_of_one_takes_transactions_and_moves_to_new_ports(folder: Path) -> None:
    database = MongoDB(folder / "mongodb")
    database.start()
    with MongoClient[dict[str, Any]](database.url) as client, client.start_session() as session:
        things = client.get_default_database()["things"]
        things.insert_one({"_id": 0})
        with session.start_transaction():
            things.insert_one({"_id": 1}, session=session)
    database.stop()
    assert traces(folder) == []

    moved = MongoDB(folder / "mongodb")
    assert moved.ports == database.ports
    moved.ports = [database.ports[0] + 1]
    moved.start()
    try:
        with MongoClient[dict[str, Any]](moved.url) as client:
            assert client.get_default_database()["things"].count_documents({}) == 2
    finally:
        moved.stop()


def test_a_replica_set_of_three_fails_over_and_takes_the_member_back(folder: Path) -> None:
    database = MongoDB(folder / "mongodb", members=3)
    database.start()
    try:
        first = database.primary()
        assert first is not None
        database.members[first].kill()
        wait_until(lambda: database.primary() not in {None, first}, 30, "another primary")
        database.launch_member(first)
        database.wait_ready()
        assert database.running
    finally:
        database.stop()
    assert traces(folder) == []


# Docker


@pytest.fixture
def engines(folder: Path) -> Iterator[tuple[DockerEngine, DockerEngine]]:
    """Two engines that were started at the same time."""
    pair = (DockerEngine(folder / "first"), DockerEngine(folder / "second"))
    try:
        starts = [threading.Thread(target=engine.start) for engine in pair]
        for start in starts:
            start.start()
        for start in starts:
            start.join()
        yield pair
    finally:
        for engine in pair:
            engine.stop()


def docker(engine: DockerEngine, *arguments: str, stdin: bytes | None = None) -> str:
    return run("docker", "-H", engine.url, *arguments, stdin=stdin)


def tiny_image(greeting: str) -> bytes:
    """Tar a static busybox whose web server says `greeting`."""
    busybox = packages.find_program("busybox")
    assert busybox
    tarball = io.BytesIO()
    with tarfile.open(fileobj=tarball, mode="w") as archive:
        archive.add(busybox.resolve(), "bin/busybox")
        page = tarfile.TarInfo("www/index.html")
        page.size = len(greeting)
        archive.addfile(page, io.BytesIO(greeting.encode()))
    return tarball.getvalue()


def serve(engine: DockerEngine, name: str, *options: str) -> tuple[str, str]:
    """Run the web server and wait for it; its address on loopback and its own address."""
    serving = ("/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/www")
    publish = ("--publish", "127.0.0.1::80", "--label", "modelyard.host=test")
    docker(engine, "run", "-d", "--name", name, *publish, *options, "tiny", *serving)
    networks = json.loads(docker(engine, "inspect", name))[0]["NetworkSettings"]["Networks"]
    address = docker(engine, "port", name, "80")
    wait_until(lambda: answers(address), 10, f"web server {name}")
    return address, next(iter(networks.values()))["IPAddress"]


def answers(address: str) -> bool:
    try:
        return httpx2.get(f"http://{address}/", timeout=5).is_success
    except httpx2.TransportError:
        return False


def page(address: str) -> str:
    return httpx2.get(f"http://{address}/", timeout=5).text


def said(engine: DockerEngine, host: str, *, by: str) -> str:
    """Let one container ask another, with nc: wget of a static busybox cannot resolve names."""
    ask = ("/bin/busybox", "nc", "-w", "2", host, "80")
    command = ("docker", "-H", engine.url, "exec", "-i", by, *ask)
    request = b"GET / HTTP/1.0\r\n\r\n"
    done = subprocess.run(command, input=request, capture_output=True, check=False)
    return done.stdout.decode()


def kernel_mentions(engine: DockerEngine) -> list[str]:
    """Links, addresses and packet rules of an engine, also of the networks of its users."""
    network = engine.network
    assert network
    lines = run("iptables-save").splitlines() + run("ip", "-o", "-4", "address").splitlines()
    return [
        line
        for line in lines
        if network.bridge in line
        or any(ipaddress.IPv4Address(a) in network.block for a in ADDRESS.findall(line))
    ]


@pytest.mark.timeout(180)
def test_two_engines_side_by_side_serve_isolate_and_leave_nothing(
    engines: tuple[DockerEngine, DockerEngine], folder: Path
) -> None:
    pages = {}
    for engine, greeting in zip(engines, ("first", "second"), strict=True):
        docker(engine, "import", "-", "tiny", stdin=tiny_image(greeting))
        docker(engine, "network", "create", "-o", BRIDGE_OPTION, "modelyard")
        address, _ = serve(engine, "one", "--network", "modelyard")
        pages[address] = greeting
        _, neighbour = serve(engine, "two", "--network", "modelyard")
        serve(engine, "three")
        assert greeting in said(engine, "127.0.0.1", by="one")
        assert said(engine, neighbour, by="one") == "", "icc is off"
    assert {address: page(address) for address in pages} == pages
    assert traces(folder) != []
    assert all(kernel_mentions(engine) for engine in engines)
    sockets = [Path(engine.url.removeprefix("unix://")) for engine in engines]

    contained = ProcessId.of(int(docker(engines[1], "inspect", "-f", "{{.State.Pid}}", "one")))
    assert contained

    engines[0].stop()
    engines[1].kill()
    assert contained.alive, "containers outlive a crash of their engine"
    engines[1].stop()
    assert not contained.alive
    assert traces(folder) == []
    assert [kernel_mentions(engine) for engine in engines] == [[], []]
    assert not any(socket.parent.exists() for socket in sockets)


@pytest.mark.timeout(180)
def test_an_engine_that_crashed_comes_back_with_its_images_networks_and_containers(
    engines: tuple[DockerEngine, DockerEngine],
) -> None:
    engine = engines[0]
    docker(engine, "import", "-", "tiny", stdin=tiny_image("still here"))
    docker(engine, "network", "create", "modelyard")
    serve(engine, "one", "--network", "modelyard")
    url = engine.url
    engine.kill()
    assert engine_api.version(url) is None
    engine.start()
    assert engine.url == url
    docker(engine, "start", "one")
    address = docker(engine, "port", "one", "80")
    wait_until(lambda: answers(address), 10, "web server one")
    assert page(address) == "still here"
    assert engine_api.remove_containers(url, "modelyard.host=another") == 0
    assert engine_api.remove_containers(url, "modelyard.host=test") == 1
    assert docker(engine, "ps", "-aq") == ""


@pytest.mark.timeout(180)
def test_an_engine_whose_folder_was_removed_after_a_crash_starts_anew_and_leaves_nothing(
    engines: tuple[DockerEngine, DockerEngine],
) -> None:
    before = engines[0]
    docker(before, "network", "create", "modelyard")
    network = before.network
    assert network
    before.kill()
    shutil.rmtree(before.folder)
    engine = DockerEngine(before.folder)
    engine.start()
    try:
        assert engine.network == network
        assert docker(engine, "network", "ls", "-q", "-f", "name=modelyard") == ""
    finally:
        engine.stop()
    assert kernel_mentions(engine) == []


def test_an_unknown_kind_of_engine_address_is_refused_in_plain_words() -> None:
    with pytest.raises(StackError, match="only unix:// and tcp://"):
        engine_api.version("ssh://elsewhere")
