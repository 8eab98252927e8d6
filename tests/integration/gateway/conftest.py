"""Gateways for all those tests of a module that leave nothing behind."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from pymongo import MongoClient

from deploy.local.mongodb import MongoDB
from deploy.local.rabbitmq import RabbitMQ
from tests.support.gateway import ServedGateway, serving, serving_a_fleet
from tests.support.servers.databases import own_database
from tests.support.servers.virtual_hosts import VirtualHosts


@pytest.fixture(scope="module")
def shared_amqp_url(rabbitmq: RabbitMQ, virtual_hosts: VirtualHosts) -> Iterator[str]:
    name = virtual_hosts.take()
    yield f"{rabbitmq.url}/{name}"
    virtual_hosts.give_back(name)


@pytest.fixture(scope="module")
def shared_mongo_url(mongodb: MongoDB, mongo_client: MongoClient[dict[str, Any]]) -> Iterator[str]:
    with own_database(mongo_client, mongodb.url) as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(shared_mongo_url: str, shared_amqp_url: str) -> AsyncIterator[ServedGateway]:
    """Serve a gateway that everybody may use: with a model, a dataset and a host."""
    async with serving_a_fleet(shared_mongo_url, shared_amqp_url) as served:
        yield served


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(shared_mongo_url: str, shared_amqp_url: str) -> AsyncIterator[ServedGateway]:
    """Serve a gateway that asks for a key, on the same stores."""
    async with serving(shared_mongo_url, shared_amqp_url, with_keys=True) as served:
        yield served
