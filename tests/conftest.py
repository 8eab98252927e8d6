"""The real servers that the tests run on: private, started once a session when first needed."""

import os
import shutil
import sys
import uuid
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from deploy.local import packages
from deploy.local.docker_engine import DockerEngine
from deploy.local.errors import StackError
from deploy.local.images import ensure_images
from deploy.local.mongodb import MongoDB
from deploy.local.rabbitmq import LARGEST_MESSAGE_BYTES, RabbitMQ
from modelyard.broker import Broker
from modelyard.store import Store
from tests.support.servers.virtual_hosts import virtual_hosts

# Not under pytest's own folder: RabbitMQ runs under an account of its own and has to get in, and
# the engines keep their images from one session to the next.
FOLDER = Path(__file__).resolve().parents[1] / "var" / "tests"
SERVERS = {"folder", "programs", "rabbitmq", "mongodb", "engine", "second_engine"}
"""The fixtures that start a server, install one, or hold its data."""
WITHOUT_SERVERS = ("tests/unit/", "tests/statemachine/")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what a person may ask of the tests beyond what `make test` does."""
    parser.addoption(
        "--machine-examples",
        type=int,
        default=None,
        help="run so many new examples of the state machine, instead of always the same ones",
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


class ServersInOneProcess(LoadScopeScheduling):  # type: ignore[misc]
    """Has one of pytest-xdist's processes run all tests that need servers, one after the other.

    There is one RabbitMQ for all, two processes can't share an engine's folder, and what is
    measured there is not disturbed by another such test. The others go to whoever is free.
    """

    def _split_scope(self, nodeid: str) -> str:
        """Return a name; what has the same name is run by the same process."""
        alone = self.config.option.fast or nodeid.startswith(WITHOUT_SERVERS)
        return nodeid if alone else "servers"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ServersInOneProcess:
    """Say which process runs which test."""
    return ServersInOneProcess(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what waits, where nobody wants to wait."""
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
def programs() -> None:
    """Install what the machine lacks, as `make up` does; where that can't be, say what it is."""
    _install()


def _install() -> None:
    needs = (*packages.BROKER, *packages.ENGINE, *packages.IMAGES, *packages.CLIENTS)
    packages.ensure(needs, lambda line: print(line, file=sys.stderr))  # noqa: T201


@pytest.fixture(scope="session")
def rabbitmq(folder: Path, programs: None) -> Iterator[RabbitMQ]:  # noqa: ARG001
    """Start a RabbitMQ for the session."""
    server = RabbitMQ(folder / "rabbitmq", max_message_bytes=LARGEST_MESSAGE_BYTES)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def mongodb(folder: Path) -> Iterator[MongoDB]:
    """Start a MongoDB replica set of one for the session."""
    server = MongoDB(folder / "mongodb")
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
def _vhosts(rabbitmq: RabbitMQ) -> Iterator[str]:
    """Make virtual hosts as they are asked for."""
    return virtual_hosts(rabbitmq, "test")


@pytest.fixture
def amqp_url(rabbitmq: RabbitMQ, _vhosts: Iterator[str]) -> str:
    """Give the test a virtual host of its own."""
    return f"{rabbitmq.url}/{next(_vhosts)}"


@pytest.fixture
def mongo_url(mongodb: MongoDB) -> Iterator[str]:
    """Give the test a database of its own."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    yield mongodb.url.replace("/modelyard?", f"/{name}?")
    with MongoClient[dict[str, object]](mongodb.url) as client:
        client.drop_database(name)


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
