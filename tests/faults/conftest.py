"""The servers that faults are made in, the fleets on them, and the checker at the end of a test."""

import asyncio
import logging
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from deploy.local import packages
from deploy.local.docker_engine import DockerEngine
from deploy.local.mongodb import MongoDB
from deploy.local.ports import free_port
from deploy.local.rabbitmq import LARGEST_MESSAGE_BYTES, RabbitMQ
from tests.e2e.catalog import PROBE
from tests.faults.harness.checked_fleet import (
    CheckedFleet,
    Servers,
    Site,
    make_site,
    open_checked_fleet,
)
from tests.faults.harness.proxied_fleet import ProxiedFleet, open_proxied_fleet
from tests.faults.harness.registry import SlowRegistry
from tests.support.invariants.outside import EngineView
from tests.support.servers.virtual_hosts import VirtualHosts

PATIENCE_S = 300
CUT_S = 30.0
MANY = 300
EACH_S = 1.0
"""For each operation that contends for one slot; half of it is for what heals in the end."""
HERE = Path(__file__).parent
MEMBERS = 3


@pytest.fixture(scope="package")
def servers(
    data: Path,
    programs: None,  # noqa: ARG001
    engine: DockerEngine,
    second_engine: DockerEngine,
) -> Iterator[Servers]:
    """Start a RabbitMQ of our own and a MongoDB of three members."""
    packages.ensure(packages.CLOCKS, lambda line: print(line, file=sys.stderr))  # noqa: T201
    rabbitmq = RabbitMQ(data / "faults-rabbitmq", max_message_bytes=LARGEST_MESSAGE_BYTES)
    mongodb = MongoDB(data / "faults-mongodb", members=MEMBERS)
    try:
        rabbitmq.start()
        mongodb.start()
        network = engine.network
        assert network is not None
        yield Servers(
            rabbitmq,
            mongodb,
            {"h1": engine, "h2": second_engine},
            VirtualHosts(rabbitmq, "fault"),
            (str(network.gateway.ip), free_port()),
        )
    finally:
        rabbitmq.stop()
        mongodb.stop()


class Sites:
    """Keeps a running site for the next test; one in which something went wrong is not kept."""

    def __init__(self, servers: Servers, folder: Path) -> None:
        self.servers = servers
        self.folder = folder
        self._kept: Site | None = None

    def take(self) -> Site:
        """Return a site that runs."""
        if self._kept is None:
            self._kept = make_site(self.servers, self.folder)
            self._kept.processes.start()
        return self._kept

    def give_back(self, site: Site) -> None:
        """Keep a site, or close it if it is not intact."""
        if not site.intact:
            self.close()

    def close(self) -> None:
        """Close what is kept."""
        site, self._kept = self._kept, None
        if site is not None:
            site.close()


@pytest.fixture(scope="package")
def sites(servers: Servers, folder: Path) -> Iterator[Sites]:
    """Keep a site from test to test."""
    made = Sites(servers, folder)
    yield made
    made.close()


@pytest.fixture
async def fleet(sites: Sites, request: pytest.FixtureRequest) -> AsyncIterator[CheckedFleet]:
    """Give the test a fleet: a gateway, two dispatchers, two workers on two engines."""
    site = await asyncio.to_thread(sites.take)
    # Until the test has shown that all holds, nobody else is to have this site.
    site.intact = False
    try:
        async with open_checked_fleet(site) as made:
            yield made
            measured(request, made)
            if made.checked and not made.violations:
                await made.clear()
                site.intact = True
    finally:
        await asyncio.to_thread(sites.give_back, site)


def measured(request: pytest.FixtureRequest, fleet: CheckedFleet) -> None:
    """Leave what the checker has found for the table."""
    node: pytest.Item = request.node
    if fleet.invariants.healed_s is not None:
        node.user_properties.append(("heal_s", fleet.invariants.healed_s))
    names = " ".join(sorted({one.invariant for one in fleet.violations}))
    if names:
        node.user_properties.append(("violations", names))


@pytest.fixture
async def proxied(
    servers: Servers, sites: Sites, folder: Path, request: pytest.FixtureRequest
) -> AsyncIterator[ProxiedFleet]:
    """Give the test a fleet of its own whose wires can be cut."""
    await asyncio.to_thread(sites.close)  # both would work on the same engines
    async with open_proxied_fleet(servers, folder) as made:
        made.fleet.site.intact = False
        yield made
        measured(request, made.fleet)
        made.fleet.site.intact = made.fleet.checked and not made.fleet.violations


@pytest.fixture
async def registry(servers: Servers, folder: Path) -> AsyncIterator[SlowRegistry]:
    """Have the probe in a registry."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        exported = Path(own) / "probe.tar"
        engine = EngineView(servers.engines["h1"])
        await engine.export(PROBE, exported)
        await engine.close()
        yield await asyncio.to_thread(SlowRegistry, exported, Path(own) / "blobs")


@pytest.fixture(autouse=True)
def _no_word_of_the_clients(caplog: pytest.LogCaptureFixture) -> None:
    """Silence the tests' own AMQP client: it complains at each try about what is broken."""
    caplog.set_level(logging.CRITICAL, logger="aiormq")


@pytest.fixture
def cut_s(pytestconfig: pytest.Config) -> float:
    """Say for how many seconds everybody is to be cut off; the test gets this time on top."""
    return _cut_s(pytestconfig)


def _cut_s(config: pytest.Config) -> float:
    asked: float = config.getoption("--cut-s", default=CUT_S)
    return asked


@pytest.fixture
def many(pytestconfig: pytest.Config) -> int:
    """Say how many operations are to contend for one slot; the test gets time for each."""
    return _many(pytestconfig)


def _many(config: pytest.Config) -> int:
    asked: int = config.getoption("--many", default=MANY)
    return asked


def _more_s(item: pytest.Item) -> float:
    """Return the seconds that a test gets on top, for what was asked of it."""
    asked = item.fixturenames if isinstance(item, pytest.Function) else ()
    cut_s = _cut_s(item.config) if "cut_s" in asked else 0
    return cut_s + (EACH_S * _many(item.config) if "many" in asked else 0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of faults the time that faults take."""
    for item in items:
        if item.path.is_relative_to(HERE) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(PATIENCE_S + _more_s(item)))
