"""What the tests of the model-server client share."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from worker.model_server.client import ModelServer
from worker.model_server.http_exchange import BoundedTransport


@pytest.fixture
def transport() -> Iterator[BoundedTransport]:
    with closing(BoundedTransport()) as made:
        yield made


@pytest.fixture
def model_server(transport: BoundedTransport) -> ModelServer:
    return ModelServer(transport)
