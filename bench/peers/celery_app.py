"""The Celery application: late acks, confirmed publishes, quorum queue, results in MongoDB.

Its own result backend stores start and result of each task.
"""

import json
from itertools import cycle
from typing import Any

import urllib3
from celery import Celery

from bench.peers.settings import PeerSettings

DATABASE = "bench_celery"
COLLECTION = "celery_taskmeta"
ENDED = {"status": "SUCCESS"}
TASK = "infer"

_HEADERS = {"Content-Type": "application/json"}
_OK = 200
_CONNECTIONS = 16

settings = PeerSettings.by()
app = Celery("bench", broker=settings.amqp_url, backend=settings.mongo_url)
app.conf.update(
    mongodb_backend_settings={"database": DATABASE, "taskmeta_collection": COLLECTION},
    task_acks_late=True,
    task_track_started=True,
    task_default_queue="bench.celery",
    task_default_queue_type="quorum",
    task_default_exchange_type="topic",
    broker_transport_options={"confirm_publish": True},
    broker_pool_limit=_CONNECTIONS,
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=8,
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
    result_expires=None,
)
_pool = urllib3.PoolManager()
_models = cycle(settings.models)


@app.task(name=TASK)
def infer(body: dict[str, Any]) -> dict[str, Any]:
    """Send the request to a model server, and return its answer."""
    answer = _pool.request("POST", next(_models), body=json.dumps(body), headers=_HEADERS)
    if answer.status != _OK:
        raise RuntimeError(f"The model server answered {answer.status}.")
    result: dict[str, Any] = answer.json()
    return result
