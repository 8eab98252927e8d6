"""Sends a message that can't be processed to the dead letters, with its reason and its queue."""

import itertools
from collections.abc import Mapping

import structlog

from modelyard.broker.connection import Broker
from modelyard.broker.headers import (
    DETAIL_HEADER,
    GENERATED_ID_HEADER,
    MAX_HEADER_BYTES,
    MAX_HEADER_VALUES,
    QUEUE_HEADER,
    REASON_HEADER,
    SENDER_HEADER,
    SIZE_HEADER,
    added_by_rabbitmq,
)
from modelyard.broker.subscription import Delivery
from modelyard.contract.errors import ErrorInfo
from modelyard.contract.topology import DEAD, DEAD_QUEUE

log = structlog.get_logger(__name__)

_MOST_BYTES = MAX_HEADER_BYTES * 2 // 3
"""Kept of a publisher's headers. With our headers, and those that RabbitMQ adds, the total must
stay below the limit for reading them again."""
_MOST_HEADERS = MAX_HEADER_VALUES - 56
_HEADER_OVERHEAD = 6
"""Bytes of a header in its frame in addition to its name and its value."""
_ROUTES_COPIES = ("cc", "bcc")


async def send_to_dead_letters(
    broker: Broker, delivery: Delivery, error: ErrorInfo, *, queue: str
) -> None:
    """Send a message that can't be processed to the dead letters, with its reason and headers.

    Raises `BrokerUnavailableError`; the caller settles the delivery only after this returned.
    """
    # A dead letter that can't be recorded is sent again: without its headers they can't make it
    # fail for ever.
    kept = {} if queue == DEAD_QUEUE.name else _kept(delivery.headers)
    log.warning("message.buried", queue=queue, code=error.code, reason=error.message)
    await broker.publish(
        DEAD,
        delivery.routing_key,
        delivery.body,
        message_type=delivery.type,
        # A message without an id keeps the key that it was read with, so that a replay finds the
        # same operation ids.
        message_id=delivery.message_id or delivery.fallback_key,
        priority=delivery.priority,
        headers={
            **kept,
            REASON_HEADER: error.code,
            DETAIL_HEADER: error.message[:1_000],
            QUEUE_HEADER: queue,
            SENDER_HEADER: delivery.user_id or "",
            SIZE_HEADER: str(delivery.size),
            **({} if delivery.message_id else {GENERATED_ID_HEADER: "true"}),
        },
        properties=delivery.properties,
    )


def _kept(headers: Mapping[str, object]) -> dict[str, str]:
    """Return the publisher's headers; the shortest if there are too many, as keys are short."""
    texts = {
        name: value if isinstance(value, str) else value.decode(errors="replace")
        for name, value in headers.items()
        if isinstance(value, str | bytes)
        and name.lower() not in _ROUTES_COPIES
        and not added_by_rabbitmq(name)
    }
    sizes = {
        name: len(f"{name}{value}".encode()) + _HEADER_OVERHEAD for name, value in texts.items()
    }
    shortest_first = sorted(texts, key=lambda name: sizes[name])[:_MOST_HEADERS]
    up_to_here = itertools.accumulate(sizes[name] for name in shortest_first)
    return {
        name: texts[name]
        for name, size in zip(shortest_first, up_to_here, strict=True)
        if size <= _MOST_BYTES
    }
