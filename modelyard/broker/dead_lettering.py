"""Burying: a message that can't be taken goes to the dead letters, and says why and where from."""

import itertools
from collections.abc import Mapping

import structlog

from modelyard.broker.connection import Broker
from modelyard.broker.headers import (
    DETAIL_HEADER,
    MAX_HEADER_BYTES,
    MAX_HEADER_VALUES,
    QUEUE_HEADER,
    REASON_HEADER,
    SENDER_HEADER,
    SIZE_HEADER,
)
from modelyard.broker.subscription import Delivery
from modelyard.contract.errors import ErrorInfo
from modelyard.contract.topology import DEAD, DEAD_QUEUE

log = structlog.get_logger(__name__)

_MOST_BYTES = MAX_HEADER_BYTES * 2 // 3
"""Of a publisher's headers: with ours, and what RabbitMQ adds, they have to be read again."""
_MOST_HEADERS = MAX_HEADER_VALUES - 56
_BESIDES = 6
"""Bytes of a header in its frame besides its name and its value."""
_ROUTES_COPIES = ("cc", "bcc")
_ADDED_BY_RABBITMQ = ("x-death", "x-delivery-", "x-first-death-", "x-last-death-")


async def bury(broker: Broker, delivery: Delivery, error: ErrorInfo, *, queue: str) -> None:
    """Send a message that can't be taken to the dead letters, with its reason and its headers.

    Raises `BrokerUnavailableError`; the caller settles the delivery only after this returned.
    """
    # A letter that can't be recorded comes here again: nothing that it says may make that a circle.
    kept = {} if queue == DEAD_QUEUE.name else _kept(delivery.headers)
    log.warning("message.buried", queue=queue, code=error.code, reason=error.message)
    await broker.publish(
        DEAD,
        delivery.routing_key,
        delivery.body,
        message_type=delivery.type,
        # Without one, what it was read by: its requests are found again under the same ids.
        message_id=delivery.message_id or delivery.fallback_key,
        headers={
            **kept,
            REASON_HEADER: error.code,
            DETAIL_HEADER: error.message[:1_000],
            QUEUE_HEADER: queue,
            SENDER_HEADER: delivery.user_id or "",
            SIZE_HEADER: str(delivery.size),
        },
    )


def _kept(headers: Mapping[str, object]) -> dict[str, str]:
    """Return what the publisher said; if it said much, the shortest headers: one may be its key."""
    said = {
        name: value if isinstance(value, str) else value.decode(errors="replace")
        for name, value in headers.items()
        if isinstance(value, str | bytes)
        and name.lower() not in _ROUTES_COPIES
        and not name.lower().startswith(_ADDED_BY_RABBITMQ)
    }
    sizes = {name: len(f"{name}{value}".encode()) + _BESIDES for name, value in said.items()}
    shortest_first = sorted(said, key=lambda name: sizes[name])[:_MOST_HEADERS]
    up_to_here = itertools.accumulate(sizes[name] for name in shortest_first)
    return {
        name: said[name]
        for name, size in zip(shortest_first, up_to_here, strict=True)
        if size <= _MOST_BYTES
    }
