"""Uploads of inputs: how many at once, and how slowly they may come. On a virtual clock."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any

import pytest
from fastapi import Request

from gateway.problems import SlowRequestError, problem_of
from gateway.submission.uploads import (
    BEHIND_S,
    LEAST_BYTES_PER_S,
    MOST_AT_ONCE,
    MOST_OF_CLIENT,
    Uploads,
)
from modelyard.contract.access.scopes import ANYONE, Principal, Scope
from modelyard.contract.content.transfers import MAX_CONTENT_BYTES
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.store.content.files import StoredFile
from modelyard.store.content.inputs import Inputs
from tests.statemachine.loop import VirtualLoop

PART = 64 << 10


class _Inputs(Inputs):
    """Keeps nothing; `pause_s` is how long it takes for each part."""

    def __init__(self) -> None:
        self.pause_s = 0.0

    async def put(
        self, content_type: str, tenant: str, content: AsyncIterator[bytes]
    ) -> StoredFile:
        length = 0
        async for part in content:
            length += len(part)
            if self.pause_s:
                await asyncio.sleep(self.pause_s)
        return StoredFile(
            file_id="f", length=length, content_type=content_type, sha256="", tenant=tenant
        )


class Client:
    """One upload: sends parts of `size` bytes, each after a pause, up to a total."""

    def __init__(
        self, total: int, *, size: int = PART, pause_s: float = 0.0, address: str = "10.0.0.1"
    ) -> None:
        self.left = total
        self._size = size
        self._pause_s = pause_s
        headers = [(b"content-type", b"image/png")]
        scope = {"type": "http", "method": "POST", "headers": headers, "client": (address, 1)}
        self.request = Request(scope, self._receive)
        self.silent: asyncio.Event | None = None
        """What it waits for when no more than `silent_at` bytes are left."""
        self.silent_at = total

    async def _receive(self) -> dict[str, Any]:
        if self.silent is not None and self.left <= self.silent_at:
            await self.silent.wait()
        if self._pause_s:
            await asyncio.sleep(self._pause_s)
        body = bytes(min(self._size, self.left))
        self.left -= len(body)
        return {"type": "http.request", "body": body, "more_body": self.left > 0}


def key(name: str) -> Principal:
    return Principal(name, frozenset({Scope.JOBS_INFER}), key_id=name)


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    yield made
    made.finish()


@pytest.fixture
def inputs() -> _Inputs:
    return _Inputs()


@pytest.fixture
def uploads(inputs: _Inputs) -> Uploads:
    return Uploads(inputs)


def error_of(loop: VirtualLoop, work: Coroutine[Any, Any, Any]) -> ModelyardError:
    with pytest.raises(ModelyardError) as raised:
        loop.run(work)
    return raised.value


def silent_ones(
    loop: VirtualLoop, uploads: Uploads, callers: list[Principal], **more: Any
) -> tuple[asyncio.Event, list[asyncio.Task[Any]]]:
    """Begin an upload for each caller that sends nothing until the event is set."""
    go_on = asyncio.Event()
    tasks = []
    for caller in callers:
        client = Client(PART, **more)
        client.silent = go_on
        tasks.append(loop.serve(uploads.take(client.request, caller)))
    loop.advance(1.0)
    return go_on, tasks


def test_one_key_holds_a_part_of_the_places_only(loop: VirtualLoop, uploads: Uploads) -> None:
    go_on, tasks = silent_ones(loop, uploads, [key("a")] * MOST_OF_CLIENT)
    refused = error_of(loop, uploads.take(Client(1).request, key("a")))
    assert (refused.code, f"{MOST_OF_CLIENT} inputs" in refused.message) == (
        ErrorCode.UNAVAILABLE,
        True,
    )
    assert loop.run(uploads.take(Client(9).request, key("b"))).size == 9
    go_on.set()
    loop.advance(1.0)
    assert [task.result().size for task in tasks] == [PART] * MOST_OF_CLIENT
    assert loop.run(uploads.take(Client(9).request, key("a"))).size == 9


def test_without_keys_one_address_holds_a_part_of_the_places_only(
    loop: VirtualLoop, uploads: Uploads
) -> None:
    silent_ones(loop, uploads, [ANYONE] * MOST_OF_CLIENT, address="2001:db8::1")
    same_network = Client(1, address="2001:db8::2")
    assert error_of(loop, uploads.take(same_network.request, ANYONE)).code is ErrorCode.UNAVAILABLE
    assert loop.run(uploads.take(Client(9).request, ANYONE)).size == 9


def test_all_together_hold_so_many_places_and_no_more(loop: VirtualLoop, uploads: Uploads) -> None:
    callers = [key(str(number // MOST_OF_CLIENT)) for number in range(MOST_AT_ONCE)]
    _, tasks = silent_ones(loop, uploads, callers)
    refused = error_of(loop, uploads.take(Client(1).request, key("other")))
    assert refused.code is ErrorCode.UNAVAILABLE
    loop.advance(BEHIND_S)
    assert all(isinstance(task.exception(), SlowRequestError) for task in tasks)
    assert loop.run(uploads.take(Client(9).request, key("other"))).size == 9


@pytest.mark.parametrize("pause_s", [1.0, BEHIND_S - 1.0])
def test_an_upload_that_trickles_ends_soon(
    loop: VirtualLoop, uploads: Uploads, pause_s: float
) -> None:
    began = loop.time()
    trickle = Client(100, size=1, pause_s=pause_s)
    slow = error_of(loop, uploads.take(trickle.request, ANYONE))
    assert problem_of(slow).status == 408
    assert loop.time() - began < BEHIND_S + 1.0


def test_what_came_fast_at_first_may_not_pause_for_longer(
    loop: VirtualLoop, uploads: Uploads
) -> None:
    began = loop.time()
    client = Client(MAX_CONTENT_BYTES)
    client.silent, client.silent_at = asyncio.Event(), MAX_CONTENT_BYTES // 2
    slow = error_of(loop, uploads.take(client.request, ANYONE))
    assert isinstance(slow, SlowRequestError)
    assert (client.left, loop.time() - began) == (MAX_CONTENT_BYTES // 2, BEHIND_S)


def test_a_slow_line_may_take_its_time(loop: VirtualLoop, uploads: Uploads) -> None:
    began = loop.time()
    client = Client(MAX_CONTENT_BYTES, pause_s=PART / LEAST_BYTES_PER_S)
    assert loop.run(uploads.take(client.request, ANYONE)).size == MAX_CONTENT_BYTES
    assert loop.time() - began > 1_800.0


def test_a_store_that_is_slow_is_not_the_clients_fault(
    loop: VirtualLoop, uploads: Uploads, inputs: _Inputs
) -> None:
    inputs.pause_s = BEHIND_S - 1.0
    assert loop.run(uploads.take(Client(4, size=1, pause_s=0.5).request, ANYONE)).size == 4
