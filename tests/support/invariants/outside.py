"""What the database, the broker and the engines themselves say; nothing of Modelyard is asked."""

import asyncio
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx2
from pymongo import AsyncMongoClient

from deploy.local.docker_engine import DockerEngine
from deploy.local.rabbitmq import RabbitMQ

Document = dict[str, Any]
_NAME = re.compile(r'"connection_name","([^"]*)"')
EXPORT_S = 120.0


class Database:
    """Modelyard's collections, read raw."""

    def __init__(self, mongo_url: str) -> None:
        self._client: AsyncMongoClient[Document] = AsyncMongoClient(
            mongo_url, tz_aware=True, serverSelectionTimeoutMS=10_000
        )
        self._database = self._client.get_default_database()

    async def all(
        self, collection: str, criteria: Document | None = None, *fields: str
    ) -> list[Document]:
        """Return documents, whole or with these fields alone."""
        projection = dict.fromkeys(fields, 1) if fields else None
        return await self._database[collection].find(criteria or {}, projection).to_list(None)

    async def count(self, collection: str, criteria: Document | None = None) -> int:
        """Return how many documents there are."""
        return await self._database[collection].count_documents(criteria or {})

    async def close(self) -> None:
        """Close all sockets."""
        await self._client.close()


@dataclass(frozen=True, slots=True)
class QueueState:
    """One queue of the virtual host in use."""

    name: str
    messages: int
    unacknowledged: int
    consumers: int


async def queues(rabbitmq: RabbitMQ, amqp_url: str) -> list[QueueState]:
    """Return the queues of the URL's virtual host; the broker counts every few seconds only."""
    words = ("name", "messages", "messages_unacknowledged", "consumers")
    listed = await asyncio.to_thread(
        rabbitmq.ctl, "--no-table-headers", "list_queues", "--vhost", _vhost(amqp_url), *words
    )
    rows = [line.split("\t") for line in listed.splitlines() if line.strip()]
    return [QueueState(name, *(int(number or 0) for number in rest)) for name, *rest in rows]


async def consumers(rabbitmq: RabbitMQ, amqp_url: str) -> Counter[str]:
    """Count the consumers of each queue, also those that wait for their turn, as of now."""
    listed = await asyncio.to_thread(
        rabbitmq.ctl,
        "--no-table-headers",
        "list_consumers",
        "--vhost",
        _vhost(amqp_url),
        "queue_name",
    )
    return Counter(line.strip() for line in listed.splitlines() if line.strip())


async def connections(rabbitmq: RabbitMQ, amqp_url: str) -> Counter[str]:
    """Count the connections to the URL's virtual host by the names that their clients gave."""
    listed = await asyncio.to_thread(
        rabbitmq.ctl, "--no-table-headers", "list_connections", "vhost", "client_properties"
    )
    rows = [line.split("\t", 1) for line in listed.splitlines() if line.strip()]
    ours = [_NAME.search(properties) for vhost, properties in rows if vhost == _vhost(amqp_url)]
    return Counter(named[1] for named in ours if named)


def _vhost(amqp_url: str) -> str:
    return unquote(urlsplit(amqp_url).path.removeprefix("/")) or "/"


@dataclass(frozen=True, slots=True)
class Labelled:
    """A container that carries our labels."""

    host_id: str
    job_id: str
    generation: int
    container_id: str
    state: str

    @property
    def name(self) -> tuple[str, str, int]:
        """Host, job and generation: what there may be one of."""
        return self.host_id, self.job_id, self.generation


class EngineView:
    """One engine."""

    def __init__(self, engine: DockerEngine) -> None:
        transport = httpx2.AsyncHTTPTransport(uds=engine.url.removeprefix("unix://"))
        self._http = httpx2.AsyncClient(
            transport=transport, base_url="http://engine", timeout=30, trust_env=False
        )

    async def containers(self) -> list[Document]:
        """Return all containers, running or not."""
        answer = await self._http.get("/containers/json", params={"all": "1"})
        found: list[Document] = answer.raise_for_status().json()
        return found

    async def labelled(self, host_id: str) -> list[Labelled]:
        """Return the containers that carry the labels of a host."""
        return [
            Labelled(
                host_id,
                labels["modelyard.job"],
                int(labels["modelyard.generation"]),
                one["Id"],
                one["State"],
            )
            for one in await self.containers()
            if (labels := one["Labels"]).get("modelyard.host") == host_id
        ]

    async def create(self, name: str, config: Document, *, start: bool) -> str:
        """Create a container and return its id."""
        answer = await self._http.post("/containers/create", params={"name": name}, json=config)
        container_id: str = answer.raise_for_status().json()["Id"]
        if start:
            (await self._http.post(f"/containers/{container_id}/start")).raise_for_status()
        return container_id

    async def kill(self, container_id: str) -> None:
        """SIGKILL a container; one that does not run is no matter."""
        answer = await self._http.post(f"/containers/{container_id}/kill")
        if answer.status_code not in (404, 409):
            answer.raise_for_status()

    async def remove(self, container_id: str) -> None:
        """Remove a container; one that is gone is no matter."""
        answer = await self._http.delete(f"/containers/{container_id}", params={"force": "1"})
        if answer.status_code not in (404, 409):
            answer.raise_for_status()

    async def export(self, image: str, target: Path) -> None:
        """Write an image to a file, as `docker save` does."""
        path = f"/images/{image}/get"
        async with self._http.stream("GET", path, timeout=EXPORT_S) as answer:
            answer.raise_for_status()
            with target.open("wb") as file:
                async for part in answer.aiter_bytes():
                    file.write(part)

    async def remove_image(self, image: str) -> None:
        """Remove an image that no container uses; one that is gone is no matter."""
        answer = await self._http.delete(f"/images/{image}")
        if answer.status_code != 404:
            answer.raise_for_status()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()


Engines = Mapping[str, EngineView]
"""By the id of the host that works on it."""
