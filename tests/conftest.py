"""The real servers that the tests run on: private, started once a session when first needed."""

import os
import shutil
import sys
import uuid
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import structlog
from pymongo import MongoClient
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from deploy.local import packages
from deploy.local.docker_engine import DockerEngine
from deploy.local.errors import StackError
from deploy.local.images import ensure_images
from deploy.local.mongodb import MongoDB
from deploy.local.rabbitmq import LARGEST_MESSAGE_BYTES, RabbitMQ
from deploy.local.tree import servers_tree
from modelyard.broker import Broker
from modelyard.store import Store
from tests.support.servers.data import data_folder
from tests.support.servers.databases import own_database
from tests.support.servers.turns import turn
from tests.support.servers.virtual_hosts import VirtualHosts

# Its deadline for an example is by the clock on the wall, which says nothing on a busy machine.
hypothesis.settings.register_profile("modelyard", deadline=None)
hypothesis.settings.load_profile("modelyard")

# Not under pytest's own folder: RabbitMQ runs under an account of its own and has to get in, and
# the engines keep their images from one session to the next.
FOLDER = Path(__file__).resolve().parents[1] / "var" / "tests"
if tree := servers_tree():
    # An older engine could not read what a newer one has written.
    FOLDER = FOLDER / tree.name
SERVERS = {"folder", "programs", "data", "rabbitmq", "mongodb", "engine", "second_engine"}
"""The fixtures that start a server, install one, or hold its data."""
WITHOUT_SERVERS = ("tests/unit/", "tests/statemachine/")
WITHOUT_ENGINES = (
    "tests/integration/bench/",
    "tests/integration/cli/",
    "tests/integration/dispatcher/",
    "tests/integration/gateway/",
    "tests/integration/store/",
)
"""Where tests need no other servers than RabbitMQ and MongoDB: about half of all that need any."""

# What the product logs of a fault is printed in plain words. Until it is told otherwise, structlog
# prints the source around each line of a traceback, which takes longer than most tests.
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what a person may ask of the tests beyond what `make test` does."""
    parser.addoption(
        "--machine-examples",
        type=int,
        default=None,
        help="run so many new examples of the state machine, instead of always the same ones",
    )
    parser.addoption(
        "--api-examples",
        type=int,
        default=None,
        help="send the HTTP API so many new examples of each operation, instead of the same three",
    )
    parser.addoption(
        "--api-seed",
        type=int,
        default=None,
        help="the seed of these examples; without it a random one, which is printed",
    )
    parser.addoption(
        "--fast",
        action="store_true",
        help="leave out what needs a server or is slow, and most examples of the state machine",
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test that needs a server."""
    if SERVERS.intersection(getattr(item, "fixturenames", ())):
        item.add_marker("server")


class ServersInTwoProcesses(LoadScopeScheduling):  # type: ignore[misc]
    """Has two of pytest-xdist's processes run all tests that need servers, each on its own servers.

    Tests with servers wait more than they work, so that two rows of them, side by side, are done in
    little more than half the time. What is marked with `alone` has nothing of the other row beside
    it, and comes last: all that needs no servers has ended by then.
    Two processes can't share an engine's folder: the tests with engines are all in the same row.
    The tests without servers go to whoever is free.
    """

    def _split_scope(self, nodeid: str) -> str:
        """Return a name; what has the same name is run by the same process.

        The cases of one test stay together: they may share what takes long to make.
        """
        if self.config.option.fast or nodeid.startswith(WITHOUT_SERVERS):
            return nodeid.partition("[")[0]
        return "without engines" if nodeid.startswith(WITHOUT_ENGINES) else "with engines"

    def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
        """Forget what is done: pytest-xdist counts all that is left after each test."""
        super().mark_test_complete(node, item_index, duration)
        of_node = self.assigned_work[node]
        for name in [name for name, tests in of_node.items() if all(tests.values())]:
            del of_node[name]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ServersInTwoProcesses:
    """Say which process runs which test.

    In the order in which they are collected: what takes longest, the tests with servers and the
    state machine, comes first. By default it would be what has the most cases.
    """
    config.option.loadscopereorder = False
    return ServersInTwoProcesses(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before the time of the test begins
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run a test with servers in its turn: what has to be alone is not disturbed by others."""
    if not item.get_closest_marker("server"):
        return (yield)
    with turn(FOLDER, alone=item.get_closest_marker("alone") is not None):
        return (yield)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what waits, where nobody wants to wait; what has to be alone comes last."""
    items.sort(key=lambda item: item.get_closest_marker("alone") is not None)
    if not config.option.fast:
        return
    kept, left_out = list[pytest.Item](), list[pytest.Item]()
    for item in items:
        waits = item.get_closest_marker("server") or item.get_closest_marker("slow")
        (left_out if waits else kept).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist says that this process has collected
def pytest_collection_finish(session: pytest.Session) -> None:
    """Install programs and make images before the first test: no test's time is meant for it.

    pytest-xdist begins when all its processes have collected, and any of them may be the one that
    runs the tests with servers.
    """
    first = os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0"
    if session.config.option.collectonly or not first:
        return
    needed = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    try:
        if "programs" in needed:
            _install()
        if "engine" in needed:
            with _engine("a"):
                pass
    except StackError as error:
        # The tests that need it will fail of the same; the others need not.
        print(error, file=sys.stderr)  # noqa: T201


@pytest.fixture(scope="session")
def folder(pytestconfig: pytest.Config) -> Iterator[Path]:
    """Give the session a folder for its servers' data."""
    assert not pytestconfig.option.fast, "a test that starts a server is not marked as one"
    own = FOLDER / uuid.uuid4().hex[:8]
    own.mkdir(parents=True)
    yield own
    shutil.rmtree(own, ignore_errors=True)


@pytest.fixture(scope="session")
def data(folder: Path) -> Iterator[Path]:
    """Give the session's RabbitMQ and MongoDB a folder: in memory, if there is enough of it."""
    with data_folder(folder) as where:
        yield where


@pytest.fixture(scope="session")
def programs() -> None:
    """Install what the machine lacks, as `make up` does; where that can't be, say what it is."""
    _install()


def _install() -> None:
    needs = (*packages.BROKER, *packages.ENGINE, *packages.IMAGES, *packages.CLIENTS)
    packages.ensure(needs, lambda line: print(line, file=sys.stderr))  # noqa: T201


@pytest.fixture(scope="session")
def rabbitmq(data: Path, programs: None) -> Iterator[RabbitMQ]:  # noqa: ARG001
    """Start a RabbitMQ for the session."""
    server = RabbitMQ(data / "rabbitmq", max_message_bytes=LARGEST_MESSAGE_BYTES)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def mongodb(data: Path) -> Iterator[MongoDB]:
    """Start a MongoDB replica set of one for the session."""
    server = MongoDB(data / "mongodb")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def engine(programs: None) -> Iterator[DockerEngine]:  # noqa: ARG001
    """Start a Docker Engine that has the images."""
    with _engine("a") as server:
        yield server


@pytest.fixture(scope="session")
def second_engine(programs: None) -> Iterator[DockerEngine]:  # noqa: ARG001
    """Start a Docker Engine that stands for a second host."""
    with _engine("b") as server:
        yield server


@contextmanager
def _engine(name: str) -> Generator[DockerEngine]:
    server = DockerEngine(FOLDER / f"engine-{name}")
    server.start()
    try:
        ensure_images(server.url, lambda line: print(line, file=sys.stderr))  # noqa: T201
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def mongo_client(mongodb: MongoDB) -> Iterator[MongoClient[dict[str, Any]]]:
    """Give the session a client that looks after the databases of the tests."""
    with MongoClient[dict[str, Any]](mongodb.url) as client:
        yield client


@pytest.fixture(scope="session")
def virtual_hosts(rabbitmq: RabbitMQ) -> VirtualHosts:
    """Make virtual hosts as they are asked for."""
    return VirtualHosts(rabbitmq, "test")


@pytest.fixture
def amqp_url(rabbitmq: RabbitMQ, virtual_hosts: VirtualHosts) -> Iterator[str]:
    """Give the test a virtual host of its own."""
    name = virtual_hosts.take()
    yield f"{rabbitmq.url}/{name}"
    virtual_hosts.give_back(name)


@pytest.fixture
def mongo_url(mongodb: MongoDB, mongo_client: MongoClient[dict[str, Any]]) -> Iterator[str]:
    """Give the test a database of its own."""
    with own_database(mongo_client, mongodb.url) as url:
        yield url


@pytest.fixture
async def store(mongo_url: str) -> AsyncIterator[Store]:
    """Give the test a store with its indexes."""
    made = Store(mongo_url, name="test", timeout_s=10.0)
    await made.prepare()
    yield made
    made.close()


@pytest.fixture
async def broker(amqp_url: str) -> AsyncIterator[Broker]:
    """Give the test a broker connection."""
    made = Broker(amqp_url, name="test")
    yield made
    await made.close()
