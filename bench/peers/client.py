"""`python -m bench.peers.client celery|taskiq`: submits tasks and measures, on command.

Each line of the standard input is a command in JSON, `{"what": "throughput", "operations": 500}` or
`{"what": "one_at_a_time", "operations": 100}`; each is answered by a line of JSON: how many
`seconds` all took from the first publish to the last end, or the `latencies_s`. It ends with its
input.
"""

import asyncio
import json
import sys
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from bench.ends import Query, until_ended
from bench.peers.settings import PeerSettings

AT_ONCE = 64
THREADS = 8
"""Celery's publishes wait for their confirms in threads; it has no asynchronous client."""
_POLL_S = 0.001

Body = dict[str, Any]
"""What each task sends to its model server."""


class Peer(ABC):
    """A task queue under measurement."""

    database: str
    collection: str
    ended: Query

    @abstractmethod
    async def connect(self) -> None:
        """Open the connections for publishing."""

    @abstractmethod
    async def publish(self, task_id: str, body: Body) -> None:
        """Return when the broker has confirmed one task."""

    @abstractmethod
    async def publish_all(self, task_ids: list[str], body: Body) -> None:
        """Return when the broker has confirmed all tasks."""


class CeleryPeer(Peer):
    """Celery, through its own client."""

    def __init__(self) -> None:
        from bench.peers import celery_app  # noqa: PLC0415 - it reads the settings

        self.database, self.collection = celery_app.DATABASE, celery_app.COLLECTION
        self.ended = celery_app.ENDED
        self._task = celery_app.infer
        self._threads = ThreadPoolExecutor(THREADS)

    async def connect(self) -> None:
        self._task.app.connection_for_write().ensure_connection()

    async def publish(self, task_id: str, body: Body) -> None:
        # In this thread: nothing else goes on while one task is published.
        self._publish(task_id, body)

    async def publish_all(self, task_ids: list[str], body: Body) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.gather(
            *(loop.run_in_executor(self._threads, self._publish, one, body) for one in task_ids)
        )

    def _publish(self, task_id: str, body: Body) -> None:
        self._task.apply_async((body,), task_id=task_id)


class TaskiqPeer(Peer):
    """Taskiq, through its own client."""

    def __init__(self) -> None:
        from bench.peers import taskiq_app  # noqa: PLC0415 - it reads the settings

        self.database, self.collection = taskiq_app.DATABASE, taskiq_app.COLLECTION
        self.ended = taskiq_app.ENDED
        self._task = taskiq_app.infer
        self._broker = taskiq_app.broker

    async def connect(self) -> None:
        await self._broker.startup()

    async def publish(self, task_id: str, body: Body) -> None:
        await self._task.kicker().with_task_id(task_id).kiq(body)

    async def publish_all(self, task_ids: list[str], body: Body) -> None:
        waiting = iter(task_ids)

        async def publisher() -> None:
            for task_id in waiting:
                await self.publish(task_id, body)

        await asyncio.gather(*(publisher() for _ in range(AT_ONCE)))


class Measurements:
    """The commands."""

    def __init__(self, peer: Peer, database: AsyncDatabase[dict[str, Any]], body: Body) -> None:
        self._peer = peer
        self._database = database
        self._body = body

    async def run(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Carry a command out; return its answer."""
        await self._database[self._peer.collection].delete_many({})
        operations = int(command["operations"])
        if command["what"] == "throughput":
            return await self._throughput(operations)
        return {"latencies_s": [await self._one() for _ in range(operations)]}

    async def _throughput(self, operations: int) -> dict[str, Any]:
        task_ids = [str(uuid.uuid4()) for _ in range(operations)]
        began = time.monotonic()
        publishing = asyncio.ensure_future(self._peer.publish_all(task_ids, self._body))
        ended = await until_ended(
            self._database, self._peer.collection, self._peer.ended, operations
        )
        await publishing
        return {"seconds": ended - began}

    async def _one(self) -> float:
        """Return the seconds until a task's end can be read, which is looked for each ms."""
        task_id = str(uuid.uuid4())
        query = {"_id": task_id, **self._peer.ended}
        collection = self._database[self._peer.collection]
        began = time.monotonic()
        await self._peer.publish(task_id, self._body)
        ended = False
        while not ended:
            await asyncio.sleep(_POLL_S)
            ended = await collection.find_one(query, {"_id": 1}) is not None
        return time.monotonic() - began


async def main(name: str) -> None:
    """Answer commands until the input ends."""
    settings = PeerSettings.by()
    peer: Peer = CeleryPeer() if name == "celery" else TaskiqPeer()
    async with AsyncMongoClient[dict[str, Any]](settings.mongo_url) as mongo:
        await peer.connect()
        measurements = Measurements(peer, mongo[peer.database], json.loads(settings.body))
        while line := await asyncio.to_thread(sys.stdin.readline):
            answer = await measurements.run(json.loads(line))
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main(sys.argv[1]))
