"""Turns the many exceptions of the client libraries for a lost connection into one of ours."""

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
    # The library lists RuntimeError too: with it a programming error would pass for a loss.
    *(one for one in CONNECTION_EXCEPTIONS if one is not RuntimeError),
    ChannelInvalidStateError,
    asyncio.InvalidStateError,
    TimeoutError,
)


class TopologyMismatchError(Exception):
    """A queue or exchange exists with other arguments; the message is for an operator."""

    def __init__(self, told: str) -> None:
        """`told` is the broker's message, which names both values."""
        self.told = told
        super().__init__(f"RabbitMQ has a queue or an exchange that differs from ours: {told}")


class QueueHeldError(BrokerUnavailableError):
    """The queue already has a consumer, and the caller wants to be the only one."""


class ConsumingFailedError(BrokerUnavailableError):
    """The connection was lost while the consumer started; the broker may count deliveries."""


@contextmanager
def losses(failure: str = "RabbitMQ does not answer") -> Iterator[None]:
    """Turn the client libraries' exceptions for a lost connection into `BrokerUnavailableError`.

    In a cancelled task they become `CancelledError`: closing a broken connection fails too, and a
    caller that retries after `BrokerUnavailableError` would never end.
    """
    try:
        yield
    except _LOST as error:
        raise _lost(failure, error) from error
    except RuntimeError as error:
        if not _says_closed(error):
            raise
        raise _lost(failure, error) from error
    except asyncio.CancelledError as error:
        if _is_cancelled():
            raise
        # Nobody cancelled this task: when heartbeats stop, aiormq cancels its own reader, and every
        # task that waits for it gets the cancellation. A task group would take that for an orderly
        # end of the task.
        raise BrokerUnavailableError(f"{failure}: the connection is dead.") from error


def _lost(failure: str, error: Exception) -> BaseException:
    if _is_cancelled():
        return asyncio.CancelledError()
    return BrokerUnavailableError(f"{failure}: {error!r}")


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
    """Close a connection that may be broken already; errors are only logged."""
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
