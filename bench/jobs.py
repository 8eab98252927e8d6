"""Jobs that are `LOADED`, each in a container of the fast model server."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.stack import HOST_LABEL
from deploy.local import engine_api
from deploy.local.images import FAST
from deploy.local.ports import LOOPBACK
from modelyard.client import AsyncModelyard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.stack import BenchStack

MODEL = "fast"
PORT = 8080
INPUT: dict[str, Any] = {
    "inputs": [{"name": "pixels", "shape": [1, 8], "datatype": "FP64", "data": [0.5] * 8}]
}
"""The input of every inference, by Modelyard and by its peers."""
BODY = json.dumps(INPUT)

_MOST_AT_ONCE = 64
_LOADED_WITHIN_S = 120.0


@dataclass(frozen=True, slots=True)
class LoadedJobs:
    """Jobs, and where their model servers answer: the address that the worker uses too."""

    job_ids: Sequence[str]
    infer_urls: Sequence[str]


async def load_jobs(stack: BenchStack, count: int) -> LoadedJobs:
    """Create and load so many jobs; the stack's worker needs a slot for each."""
    job_ids = [f"bench-{number}" for number in range(count)]
    async with AsyncModelyard(stack.endpoints.url, api_key=stack.api_key) as yard:
        await yard.put_model(
            {
                "name": MODEL,
                "image": FAST,
                "profile": "open-inference",
                "port": PORT,
                "dataset_mount": None,
                "max_concurrency": _MOST_AT_ONCE,
                "resources": {"cpus": os.cpu_count() or 1, "memory": "256m"},
            }
        )
        created = [await yard.create(job_id, MODEL) for job_id in job_ids]
        loaded = [await yard.load(job_id) for job_id in job_ids]
        for one in (*created, *loaded):
            await yard.wait(one, timeout_s=_LOADED_WITHIN_S)
    ports = engine_api.published_ports(stack.endpoints.docker_host, HOST_LABEL, PORT)
    path = f"/v2/models/{MODEL}/infer"
    return LoadedJobs(job_ids, [f"http://{LOOPBACK}:{port}{path}" for port in ports])
