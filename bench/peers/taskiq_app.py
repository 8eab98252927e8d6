"""The Taskiq application: late acks, quorum queue, start and result of each task in MongoDB."""

from itertools import cycle
from typing import Annotated, Any

import aiohttp
from pymongo import AsyncMongoClient
from taskiq import Context, TaskiqDepends, TaskiqEvents, TaskiqState
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue

from bench.peers.settings import PeerSettings

DATABASE = "bench_taskiq"
COLLECTION = "tasks"
ENDED = {"state": "SUCCESS"}

_AT_ONCE = 64

settings = PeerSettings.by()
broker = AioPikaBroker(
    settings.amqp_url,
    qos=_AT_ONCE,
    exchange=Exchange(name="bench.taskiq"),
    task_queues=[Queue(name="bench.taskiq")],
    dead_letter_queue=Queue(name="bench.taskiq.dead"),
)
_models = cycle(settings.models)


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def connect(state: TaskiqState) -> None:
    """Open the connections that all tasks of this process share."""
    state.http = aiohttp.ClientSession(raise_for_status=True)
    state.mongo = AsyncMongoClient(settings.mongo_url)
    state.tasks = state.mongo[DATABASE][COLLECTION]


@broker.on_event(TaskiqEvents.WORKER_SHUTDOWN)
async def disconnect(state: TaskiqState) -> None:
    """Close them."""
    await state.http.close()
    await state.mongo.close()


@broker.task(task_name="infer")
async def infer(body: dict[str, Any], context: Annotated[Context, TaskiqDepends()]) -> None:
    """Send the request to a model server; store the start before and the answer after it."""
    state, task_id = context.state, context.message.task_id
    await state.tasks.update_one({"_id": task_id}, {"$set": {"state": "STARTED"}}, upsert=True)
    async with state.http.post(next(_models), json=body) as answer:
        result = await answer.json()
    await state.tasks.update_one({"_id": task_id}, {"$set": {"state": "SUCCESS", "result": result}})
