"""Fleets, also of the last release, on servers that it shares with the other tests."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deploy.local.docker_engine import DockerEngine
from deploy.local.mongodb import MongoDB
from deploy.local.ports import free_port
from deploy.local.rabbitmq import RabbitMQ
from tests.faults.harness.checked_fleet import (
    CheckedFleet,
    Servers,
    make_site,
    open_checked_fleet,
)
from tests.support.servers.virtual_hosts import VirtualHosts
from tests.upgrade.previous import unpack


@pytest.fixture(scope="package")
def previous(folder: Path) -> Path:
    """Give the folder of the last release's code."""
    return unpack(folder / "previous")


@pytest.fixture(scope="package")
def servers(
    rabbitmq: RabbitMQ,
    mongodb: MongoDB,
    engine: DockerEngine,
    second_engine: DockerEngine,
    virtual_hosts: VirtualHosts,
) -> Servers:
    """Give what a fleet runs on."""
    network = engine.network
    assert network is not None
    collector = (str(network.gateway.ip), free_port())
    return Servers(rabbitmq, mongodb, {"h1": engine, "h2": second_engine}, virtual_hosts, collector)


@pytest.fixture
async def fleet(
    servers: Servers, folder: Path, request: pytest.FixtureRequest
) -> AsyncIterator[CheckedFleet]:
    """Give the test a fleet that runs, of the last release if the test asks for its code."""
    site = make_site(servers, folder)
    site.intact = False  # the logs are kept, unless the test comes to its end
    try:
        if "previous" in request.fixturenames:
            for service in site.processes.services.values():
                service.root = request.getfixturevalue("previous")
        await asyncio.to_thread(site.processes.start)
        async with open_checked_fleet(site) as made:
            yield made
            site.intact = made.checked and not made.violations
    finally:
        await asyncio.to_thread(site.close)
