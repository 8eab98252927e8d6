"""The ways in which the client libraries say that a connection is gone, and our one error."""

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ChannelInvalidStateError

from modelyard.contract.errors import BrokerUnavailableError

log = structlog.get_logger(__name__)

_LOST = (
    # The library's list names every RuntimeError: a programming error would pass for a loss.
    *(one for one in CONNECTION_EXCEPTIONS if one is not RuntimeError),
    ChannelInvalidStateError,
    asyncio.InvalidStateError,
    TimeoutError,
)


class TopologyMismatchError(Exception):
    """A queue or exchange exists with other arguments; what it says is for an operator."""

    def __init__(self, told: str) -> None:
        """`told` are the broker's words, which name both values."""
        self.told = told
        super().__init__(f"RabbitMQ has a queue or an exchange that differs from ours: {told}")


class QueueHeldError(BrokerUnavailableError):
    """A queue that is to be exclusive has a consumer already."""


class ConsumingFailedError(BrokerUnavailableError):
    """The connection was lost over consuming; what was delivered meanwhile counts as delivered."""


@contextmanager
def losses(said: str = "RabbitMQ does not answer") -> Iterator[None]:
    """Turn the client libraries' ways to say that a connection is gone into our one error.

    In a task that was cancelled they stay a cancellation: closing what is broken fails too, and
    a caller that tries again after our error would never end.
    """
    try:
        yield
    except _LOST as error:
        raise _lost(said, error) from error
    except RuntimeError as error:
        if not _says_closed(error):
            raise
        raise _lost(said, error) from error
    except asyncio.CancelledError as error:
        if _is_cancelled():
            raise
        # Nobody cancelled us: when heartbeats stay out, aiormq cancels its own reader and hands
        # that on to whoever waits. A task group would take it for an orderly end of the task.
        raise BrokerUnavailableError(f"{said}: the connection is dead.") from error


def _lost(said: str, error: Exception) -> BaseException:
    if _is_cancelled():
        return asyncio.CancelledError()
    return BrokerUnavailableError(f"{said}: {error!r}")


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _says_closed(error: RuntimeError) -> bool:
    """Tell a connection that closed meanwhile from a programming error.

    Both come as bare `RuntimeError`s. aiormq 7.2.4: "<Connection: ...> closed"; aio_pika 10.2.1:
    "Connection was not opened"; uvloop 0.23: "unable to perform operation on <TCPTransport
    closed=True ...>; the handler is closed".
    """
    words = str(error)
    return (
        words.endswith(("> closed", "handler is closed", "closed channel"))
        or words == "Connection was not opened"
    )


async def close_quietly(connection: AbstractConnection) -> None:
    """Close a connection that may be broken already; what it says then is of no use."""
    try:
        with losses():
            async with asyncio.timeout(2.0):
                await connection.close()
    except (BrokerUnavailableError, RuntimeError) as error:
        log.debug("connection.close_failed", error=repr(error))


def backoff_s(failures: int, *, first_s: float = 0.2, most_s: float = 5.0) -> float:
    """Return the seconds to wait before the next try: doubling, capped, jittered."""
    ceiling: float = min(most_s, first_s * 2 ** min(failures - 1, 10))
    return ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, keeps no secret
