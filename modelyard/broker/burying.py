"""Burying: a message that can't be taken goes to the dead letters, and says why and where from."""

from collections.abc import Mapping

import structlog

from modelyard.broker.connection import Broker
from modelyard.broker.subscription import Delivery
from modelyard.contract.errors import ErrorInfo
from modelyard.contract.topology import DEAD

log = structlog.get_logger(__name__)

REASON_HEADER = "x-modelyard-reason"
DETAIL_HEADER = "x-modelyard-detail"
QUEUE_HEADER = "x-modelyard-queue"

_MOST_HEADERS = 32
_MOST_CHARACTERS = 1_000
"""Of one header; all of a message's have to fit into one frame, with ours."""
_NOT_THE_PUBLISHERS = ("cc", "bcc", "x-death", "x-delivery-", "x-first-death-", "x-last-death-")
"""What RabbitMQ adds, and what would have it route copies."""


async def bury(broker: Broker, delivery: Delivery, error: ErrorInfo, *, queue: str) -> None:
    """Send a message that can't be taken to the dead letters, with its reason and its headers.

    Raises `BrokerUnavailableError`; the caller settles the delivery only after this returned.
    """
    log.warning("message.buried", queue=queue, code=error.code, reason=error.message)
    await broker.publish(
        DEAD,
        delivery.routing_key,
        delivery.body,
        message_type=delivery.type,
        message_id=delivery.message_id,
        headers={
            **_kept(delivery.headers),
            REASON_HEADER: error.code,
            DETAIL_HEADER: error.message[:1_000],
            QUEUE_HEADER: queue,
        },
    )


def _kept(headers: Mapping[str, object]) -> dict[str, str]:
    """Return what the publisher said, as text: its key names the message's operations."""
    texts = {
        name: value.decode(errors="replace") if isinstance(value, bytes) else str(value)
        for name, value in headers.items()
        if isinstance(value, str | bytes | int | float)
        and not name.lower().startswith(_NOT_THE_PUBLISHERS)
    }
    fitting = [
        (name, text) for name, text in texts.items() if len(name) + len(text) <= _MOST_CHARACTERS
    ]
    return dict(fitting[:_MOST_HEADERS])
