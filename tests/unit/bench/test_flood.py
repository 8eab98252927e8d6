"""The load generator against the fast model server, both on a loopback port."""

import asyncio
from collections.abc import AsyncIterator
from itertools import repeat

import pytest

from bench.flood import WrongAnswer, flood, prepare
from deploy.images.fast.server import Connection, Model
from deploy.local.ports import LOOPBACK

BODY = b'{"inputs": []}'


class Counted(Model):
    """A model that counts its inferences."""

    def __init__(self) -> None:
        super().__init__()
        self.inferences = 0

    def answer(self, method: bytes, path: bytes) -> bytes:
        self.inferences += path.endswith(b"/infer")
        return super().answer(method, path)


@pytest.fixture
def model() -> Counted:
    """Give the test a model that is not loaded."""
    return Counted()


@pytest.fixture
async def url(model: Counted) -> AsyncIterator[str]:
    """Give the test a model server."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(model.answer), LOOPBACK, 0)
    async with server:
        yield f"http://{LOOPBACK}:{server.sockets[0].getsockname()[1]}"


async def load(url: str) -> None:
    """Load the model."""
    path = f"{url}/v2/repository/models/fast/load"
    await flood(path, [prepare(path, b"", {})], at_once=1, expected=200)


async def test_every_request_is_sent_once(url: str, model: Counted) -> None:
    await load(url)
    path = f"{url}/v2/models/fast/infer"

    seconds = await flood(path, repeat(prepare(path, BODY, {}), 500), at_once=8, expected=200)

    assert model.inferences == 500
    assert seconds > 0


async def test_an_unexpected_status_ends_the_flood(url: str) -> None:
    path = f"{url}/v2/models/fast/infer"

    with pytest.raises(WrongAnswer, match="the model is not loaded"):
        await flood(path, repeat(prepare(path, BODY, {}), 10), at_once=2, expected=200)


async def test_a_connection_that_ends_ends_the_flood(url: str) -> None:
    path = f"{url}/v2/models/fast/infer"
    await load(url)
    requests = repeat(prepare(path, BODY, {"Connection": "close"}), 10)

    with pytest.raises(WrongAnswer, match="The connection ended"):
        await flood(path, requests, at_once=1, expected=200)
