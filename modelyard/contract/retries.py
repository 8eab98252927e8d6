"""Which failures Modelyard retries by itself, and after how long.

It retries failures of the infrastructure. It does not retry the user's own errors: they would fail
again. It does not retry an interrupted inference either: the inference may still run in its
container, and nobody asked for it to run twice. Its owner may retry it
(`POST /v1/operations/{id}/retry`).
"""

import random
from collections.abc import Callable

from modelyard.contract.errors import ErrorCode
from modelyard.contract.states import Verb

RETRIED_CODES = frozenset(
    {
        ErrorCode.DATASET_UNAVAILABLE,
        ErrorCode.DISK_FULL,
        ErrorCode.ENGINE_UNAVAILABLE,
        ErrorCode.HOST_LOST,
        ErrorCode.IMAGE_PULL_FAILED,
        ErrorCode.NOT_ACCEPTED,
        ErrorCode.WORKER_ERROR,
        ErrorCode.WORKER_INTERRUPTED,
    }
)
"""Causes that may be gone at the next attempt, or on another host."""

_INTERRUPTIONS = frozenset(
    {ErrorCode.HOST_LOST, ErrorCode.WORKER_ERROR, ErrorCode.WORKER_INTERRUPTED}
)

BASE_S = 1.0
MOST_S = 60.0


def is_retried(verb: Verb | None, code: ErrorCode) -> bool:
    """Tell whether an attempt of `verb` that failed with `code` may be made again."""
    return code in RETRIED_CODES and not (verb is Verb.INFER and code in _INTERRUPTIONS)


def retry_delay_s(
    failures: int, uniform: Callable[[float, float], float] = random.uniform
) -> float:
    """Return the seconds to wait after the `failures`-th failure in a row, 1 and up.

    Exponential with "equal jitter": half of 1, 2, 4 ... 60 s is fixed, the other half is random,
    so that operations that failed together are not retried together.
    """
    whole = min(MOST_S, BASE_S * 2.0 ** (min(failures, 16) - 1))
    return uniform(whole / 2, whole)
