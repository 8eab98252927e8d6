"""The client of the HTTP API: `Modelyard`, and `AsyncModelyard` for asyncio.

    with Modelyard("http://127.0.0.1:8080") as yard:
        yard.wait(yard.create("j-1", "m-131", "ds-550"))
        yard.wait(yard.load("j-1"))
        asked = yard.infer("j-1", {"inputs": [...]})
        yard.wait(asked)
        print(yard.result(asked))

The client sends a call again, a few times, after a lost connection or an answer of 503. That is
safe: each submission has an idempotency key, so a repetition is the same operation. The replay of a
dead letter and the creation of an API key have no such key and are sent once; so is a change of a
catalog entry with `if_match`.
"""

from modelyard.client.aio import AsyncModelyard
from modelyard.client.endpoints import Content, NotJsonError, OperationFailed, Stored
from modelyard.client.retry import ApiError, ServiceUnavailableError
from modelyard.client.sync import Modelyard
from modelyard.contract.answers import Accepted

__all__ = [
    "Accepted",
    "ApiError",
    "AsyncModelyard",
    "Content",
    "Modelyard",
    "NotJsonError",
    "OperationFailed",
    "ServiceUnavailableError",
    "Stored",
]
