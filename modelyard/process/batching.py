"""Batches of the items that are ready; no item waits for a batch to fill."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from modelyard.contract.errors import ErrorCode, ModelyardError

T = TypeVar("T")
R = TypeVar("R")


class StoppedError(ModelyardError):
    """The flushing has ended; whether a flush that was under way took effect is unknown."""

    def __init__(self) -> None:
        super().__init__(ErrorCode.UNAVAILABLE, "This process is stopping.")


class Coalescer(Generic[T, R]):
    """Group commit: items that arrive while a flush is under way share the next one.

    `flush` gets 1 to `max_items` items and returns one result, or one exception, for each.
    An exception that it raises goes to all of them. While items come at the same time, a flush
    begins `every_s` seconds after the one before at the earliest: larger groups cost less, and
    whoever sends one item after the other does not wait.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]],
        *,
        max_items: int,
        every_s: float = 0.0,
        flushed: Callable[[int, float], None] = lambda _items, _seconds: None,
    ) -> None:
        """`flushed` is called after each flush, with its number of items and its seconds."""
        self._flushed = flushed
        self._flush = flush
        self._every_s = every_s
        self._max_items = max_items
        self._waiting: asyncio.Queue[tuple[T, asyncio.Future[R]]] = asyncio.Queue()
        self._stopped = False

    async def submit(self, item: T) -> R:
        """Return the item's result once a flush has handled it; raises what the flush raises.

        Raises `StoppedError` once `run` has ended.
        """
        return await self.enqueue(item)

    def enqueue(self, item: T) -> asyncio.Future[R]:
        """Have a flush handle the item; the future is done as `submit` is. Cancelling it is safe.

        Raises `StoppedError` once `run` has ended.
        """
        if self._stopped:
            raise StoppedError
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((item, future))
        return future

    async def run(self) -> None:
        """Flush for ever; the owner runs it as a task. At its end waiting callers get an error."""
        batch: list[tuple[T, asyncio.Future[R]]] = []
        try:
            not_before = 0.0
            loop = asyncio.get_running_loop()
            while True:
                batch = [await self._waiting.get()]
                if (pause_s := not_before - loop.time()) > 0:
                    await asyncio.sleep(pause_s)
                began = loop.time()
                while len(batch) < self._max_items and not self._waiting.empty():
                    batch.append(self._waiting.get_nowait())
                not_before = began + self._every_s if len(batch) > 1 else 0.0
                await self._flush_batch(batch)
        finally:
            self._stopped = True
            while not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            for _, future in batch:
                if not future.done():
                    future.set_exception(StoppedError())

    async def _flush_batch(self, batch: list[tuple[T, asyncio.Future[R]]]) -> None:
        results: Sequence[R | Exception]
        began = time.monotonic()
        try:
            results = await self._flush([item for item, _ in batch])
        except Exception as error:  # noqa: BLE001 - it is handed to every caller, not swallowed
            results = [error] * len(batch)
        self._flushed(len(batch), time.monotonic() - began)
        if len(results) != len(batch):
            wrong = ValueError(f"A flush of {len(batch)} items returned {len(results)} results.")
            results = [wrong] * len(batch)
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():  # the caller was cancelled
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)


def chunks_by_size(
    items: Iterable[T], size_of: Callable[[T], int], *, max_bytes: int, max_items: int
) -> Iterator[list[T]]:
    """Split `items` in order into lists of at most `max_bytes`; a larger item goes alone."""
    chunk: list[T] = []
    room = max_bytes
    for item in items:
        size = size_of(item)
        if chunk and (size > room or len(chunk) >= max_items):
            yield chunk
            chunk, room = [], max_bytes
        chunk.append(item)
        room -= size
    if chunk:
        yield chunk
