"""RabbitMQ: publishing with confirms, consuming in batches, declaring the topology.

The only package that imports aio_pika. It uses plain connections, not robust ones, and rebuilds
them itself: a subscription that loses its connection, channel or consumer ends with
`BrokerUnavailableError`, and `consume_forever` makes a new one. So a process never relies on a
consumer of an earlier connection.
"""

from modelyard.broker.connection import Broker
from modelyard.broker.connection_loss import (
    ConsumingFailedError,
    QueueHeldError,
    TopologyMismatchError,
    backoff_s,
)
from modelyard.broker.consuming import consume_forever
from modelyard.broker.dead_lettering import send_to_dead_letters
from modelyard.broker.headers import (
    DETAIL_HEADER,
    GENERATED_ID_HEADER,
    MAX_HEADER_BYTES,
    MAX_HEADER_VALUES,
    OUR_HEADERS,
    QUEUE_HEADER,
    REASON_HEADER,
    SENDER_HEADER,
    SIZE_HEADER,
    added_by_rabbitmq,
)
from modelyard.broker.lenient_decoding import decode_leniently
from modelyard.broker.properties import JSON, DirectReply, MessageProperties
from modelyard.broker.subscription import Delivery, Subscription

decode_leniently()

__all__ = [
    "DETAIL_HEADER",
    "GENERATED_ID_HEADER",
    "JSON",
    "MAX_HEADER_BYTES",
    "MAX_HEADER_VALUES",
    "OUR_HEADERS",
    "QUEUE_HEADER",
    "REASON_HEADER",
    "SENDER_HEADER",
    "SIZE_HEADER",
    "Broker",
    "ConsumingFailedError",
    "Delivery",
    "DirectReply",
    "MessageProperties",
    "QueueHeldError",
    "Subscription",
    "TopologyMismatchError",
    "added_by_rabbitmq",
    "backoff_s",
    "consume_forever",
    "send_to_dead_letters",
]
