"""A fleet of two hosts for all end-to-end tests, and the images and catalog that they use."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from deploy.local.docker_engine import DockerEngine
from deploy.local.images import export_dataset
from deploy.local.mongodb import MongoDB
from deploy.local.rabbitmq import RabbitMQ
from tests.e2e.catalog import DIGITS, PROBE, PROBES
from tests.e2e.fleet import Engine, Fleet, User, a_user_of


@pytest.fixture(scope="package")
def fleet(
    folder: Path,
    rabbitmq: RabbitMQ,
    mongodb: MongoDB,
    engine: DockerEngine,
    second_engine: DockerEngine,
) -> Iterator[Fleet]:
    """Start a fleet of real processes."""
    made = Fleet(
        folder / "fleet",
        amqp_url=rabbitmq.url,
        mongo_url=mongodb.url,
        engines={"h1": engine, "h2": second_engine},
    )
    try:
        made.start()
        export_dataset(engine.url, made.datasets / "ds-550")
        yield made
    finally:
        made.stop()


@pytest.fixture
async def user(fleet: Fleet) -> AsyncIterator[User]:
    """Give the test someone who uses the fleet, with the usual catalog."""
    async with a_user_of(fleet) as someone:
        await someone.put_dataset("ds-550", path=str(fleet.datasets / "ds-550"))
        await someone.put_model(
            "m-131", image=DIGITS, profile="open-inference", port=8080, model_name="digits"
        )
        await someone.put_model(
            "m-131-batch",
            image=DIGITS,
            profile="batch",
            command=["python3", "-m", "digits.batch", "--dataset", "{dataset}"],
        )
        for name, spec in PROBES.items():
            await someone.put_model(name, image=PROBE, **spec)
        yield someone


@pytest.fixture
async def engines(fleet: Fleet) -> AsyncIterator[dict[str, Engine]]:
    """Give the test both engines by the name of their host."""
    made = {name: Engine(one.url) for name, one in fleet.engines.items()}
    yield made
    for one in made.values():
        await one.close()
