"""The models of the end-to-end tests: the digits, and a probe that misbehaves on request."""

from typing import Any

PROBE = "modelyard/probe:local"
DIGITS = "modelyard/digits:local"

PROBES: dict[str, dict[str, Any]] = {
    "probe-open-inference": {
        "profile": "open-inference",
        "port": 8080,
        "model_name": "probe",
        "max_concurrency": 2,
    },
    "probe-http": {
        "profile": "http",
        "port": 8080,
        "hooks": {
            "alive": "/alive",
            "ready": "/ready",
            "load": {"path": "/load"},
            "unload": {"path": "/unload"},
            "infer": {"path": "/infer", "body": "{input}"},
        },
    },
    "probe-process": {
        "profile": "process",
        "port": 8080,
        "env": {"PROBE_MODE": "process"},
        "hooks": {"alive": "/alive", "infer": {"path": "/infer", "body": "{input}"}},
    },
    "probe-batch": {"profile": "batch", "env": {"PROBE_MODE": "batch"}},
}
