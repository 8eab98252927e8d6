"""The public servers, their catalog entries, and what each of them is asked.

The entries are those of docs/own-images.md: the servers run unchanged, as their projects publish
them.
"""

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class PublicServer:
    """A server from a package index, with a small model of our own."""

    name: str
    models: dict[str, Json]
    """Entries of the catalog by name; the first one is run through all verbs."""
    input: Json
    answer: Json
    """Has to be a part of the answer to `input`."""

    @property
    def image(self) -> str:
        return f"modelyard/ecosystem-{self.name}:local"

    @property
    def model(self) -> str:
        return next(iter(self.models))


MLSERVER = PublicServer(
    "mlserver",
    {
        "mlserver-sum": {
            "profile": "open-inference",
            "port": 8080,
            "model_name": "sum",
            "resources": {"memory": "1g"},
        }
    },
    {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP64", "data": [1.0, 2.0, 4.0]}]},
    {"outputs": [{"name": "total", "shape": [1, 1], "datatype": "FP64", "data": [7.0]}]},
)
LITSERVE = PublicServer(
    "litserve",
    {
        "litserve-sum": {
            "profile": "process",
            "port": 8000,
            "hooks": {"ready": {"path": "/health", "body_contains": "ok"}, "infer": "/predict"},
            "resources": {"memory": "1g"},
        }
    },
    {"numbers": [1, 2, 4]},
    {"total": 7},
)
BENTOML = PublicServer(
    "bentoml",
    {
        "bentoml-mean": {
            "profile": "process",
            "port": 3000,
            "hooks": {"ready": "/readyz", "infer": "/mean"},
            "resources": {"memory": "1g"},
        },
        "bentoml-chart": {
            "profile": "process",
            "port": 3000,
            "hooks": {"ready": "/readyz", "infer": "/chart"},
            "resources": {"memory": "1g"},
        },
    },
    {"numbers": [1.0, 2.0, 6.0]},
    {"mean": 3.0},
)
SERVERS = (MLSERVER, LITSERVE, BENTOML)
