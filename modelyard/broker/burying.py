"""Burying: a message that can't be taken goes to the dead letters, and says why and where from."""

import structlog

from modelyard.broker.connection import Broker
from modelyard.broker.subscription import Delivery
from modelyard.contract.errors import ErrorInfo
from modelyard.contract.topology import DEAD

log = structlog.get_logger(__name__)

REASON_HEADER = "x-modelyard-reason"
DETAIL_HEADER = "x-modelyard-detail"
QUEUE_HEADER = "x-modelyard-queue"


async def bury(broker: Broker, delivery: Delivery, error: ErrorInfo, *, queue: str) -> None:
    """Send a message that can't be taken to the dead letters, with its reason.

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
            REASON_HEADER: error.code,
            DETAIL_HEADER: error.message[:1_000],
            QUEUE_HEADER: queue,
        },
    )
