"""A fleet whose wires can be cut: proxies between some of its processes and their servers.

The gateway reaches both stores, each dispatcher MongoDB, the first dispatcher RabbitMQ too, and the
worker of `h1` RabbitMQ and its engine through a proxy each; all others are connected as usual.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.harness.checked_fleet import CheckedFleet, Servers, make_site, open_checked_fleet
from tests.support.servers.proxy import Proxy, through


@dataclass(frozen=True)
class ProxiedFleet:
    """The proxies, and the fleet behind them."""

    fleet: CheckedFleet
    gateway_amqp: Proxy
    gateway_mongo: Proxy
    dispatcher_amqp: Proxy
    dispatcher_mongo: Proxy
    """The first one's; the other one can go on without it."""
    dispatcher_2_mongo: Proxy
    worker_amqp: Proxy
    worker_docker: Proxy


@asynccontextmanager
async def open_proxied_fleet(servers: Servers, folder: Path) -> AsyncIterator[ProxiedFleet]:
    """Start a fleet on proxies for one test."""
    primary = await asyncio.to_thread(servers.mongodb.primary)
    assert primary is not None
    mongo_port = servers.mongodb.ports[primary]
    amqp_port = servers.rabbitmq.port
    socket = Path(servers.engines["h1"].url.removeprefix("unix://"))
    gateway_amqp, gateway_mongo = Proxy(amqp_port), Proxy(mongo_port)
    dispatcher_mongo, dispatcher_2_mongo = Proxy(mongo_port), Proxy(mongo_port)
    dispatcher_amqp, worker_amqp = Proxy(amqp_port), Proxy(amqp_port)
    worker_docker = Proxy(socket, listen=socket.with_name("proxy.sock"))
    proxies = (
        gateway_amqp,
        gateway_mongo,
        dispatcher_amqp,
        dispatcher_mongo,
        dispatcher_2_mongo,
        worker_amqp,
        worker_docker,
    )

    def settings(amqp_url: str, mongo_url: str) -> Mapping[str, Mapping[str, str]]:
        return {
            "gateway": {
                "MODELYARD_AMQP_URL": through(amqp_url, gateway_amqp),
                "MODELYARD_MONGO_URL": through(mongo_url, gateway_mongo),
            },
            "dispatcher": {
                "MODELYARD_AMQP_URL": through(amqp_url, dispatcher_amqp),
                "MODELYARD_MONGO_URL": through(mongo_url, dispatcher_mongo),
            },
            "dispatcher-2": {"MODELYARD_MONGO_URL": through(mongo_url, dispatcher_2_mongo)},
            "worker-h1": {
                "MODELYARD_AMQP_URL": through(amqp_url, worker_amqp),
                "DOCKER_HOST": through(servers.engines["h1"].url, worker_docker),
            },
        }

    site = make_site(servers, folder, settings=settings)
    async with AsyncExitStack() as stack:
        for proxy in proxies:
            await stack.enter_async_context(proxy)
        stack.push_async_callback(asyncio.to_thread, site.close)
        await asyncio.to_thread(site.processes.start)
        fleet = await stack.enter_async_context(open_checked_fleet(site))
        yield ProxiedFleet(fleet, *proxies)
