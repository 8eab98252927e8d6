"""A fleet of one host, and the images of the public servers on its engine."""

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from deploy.local.docker_engine import DockerEngine
from deploy.local.images import ensure_image
from deploy.local.mongodb import MongoDB
from deploy.local.rabbitmq import RabbitMQ
from tests.e2e.fleet import Fleet, User, a_user_of
from tests.ecosystem.servers import SERVERS, PublicServer

HERE = Path(__file__).parent
PATIENCE_S = 1_800
"""Seconds for one test; the first one builds an image."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("ecosystem")
            item.add_marker(pytest.mark.timeout(PATIENCE_S))


@pytest.fixture(scope="package")
def fleet(
    folder: Path, rabbitmq: RabbitMQ, mongodb: MongoDB, engine: DockerEngine
) -> Iterator[Fleet]:
    """Start a fleet of real processes on one engine."""
    made = Fleet(
        folder / "fleet",
        amqp_url=rabbitmq.url,
        mongo_url=mongodb.url,
        engines={"h1": engine},
    )
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(params=SERVERS, ids=[one.name for one in SERVERS])
def server(request: pytest.FixtureRequest, engine: DockerEngine) -> PublicServer:
    """Give the test each of the servers, after its image was built."""
    one: PublicServer = request.param
    ensure_image(
        engine.url,
        one.image,
        HERE / "images" / one.name,
        lambda line: print(line, file=sys.stderr),  # noqa: T201
    )
    return one


@pytest.fixture
async def user(fleet: Fleet, server: PublicServer) -> AsyncIterator[User]:
    """Give the test someone who has put the server's models into the catalog."""
    async with a_user_of(fleet) as someone:
        for name, spec in server.models.items():
            await someone.put_model(name, image=server.image, **spec)
        yield someone
