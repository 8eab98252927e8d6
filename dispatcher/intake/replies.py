"""Where the end of a request's operation is told to its publisher: the property `reply_to`.

The dispatcher may publish to every queue of its virtual host, a publisher may not. So a publisher
must not be able to have the dispatcher write into a queue for it that it could not write into, or
should not: Modelyard's own, or another service's. It may name a queue whose name nobody can guess,
because RabbitMQ has made it, or one of its own, if RabbitMQ has verified its user. A queue belongs
to the user whose name is all before the last dot: so it belongs to one user only, although names of
users may have dots.
"""

from collections.abc import Sequence

from modelyard.broker import Delivery
from modelyard.contract.errors import ErrorCode, InvalidRequestError
from modelyard.store.records import NewOperation, ReplyAddress

MADE_BY_RABBITMQ = ("amq.gen-", "amq.rabbitmq.reply-to.")
"""Queues that were declared without a name, and RabbitMQ's own way to answer, Direct Reply-to."""
OUR_PREFIX = "modelyard."


def with_replies(operations: Sequence[NewOperation], delivery: Delivery) -> list[NewOperation]:
    """Return the operations of a message with the address where their ends are told, if any.

    If the message asks for an address that it may not, all of them are rejected: its publisher
    would wait for ever.
    """
    reply_to = delivery.properties.reply_to
    if not reply_to:
        return list(operations)
    if not _may_name(delivery.user_id, reply_to):
        error = _refusal(reply_to).info()
        return [
            one if one.rejection else one.model_copy(update={"rejection": error})
            for one in operations
        ]
    reply = ReplyAddress(queue=reply_to, correlation_id=delivery.properties.correlation_id)
    return [one.model_copy(update={"reply": reply}) for one in operations]


def _may_name(user: str | None, queue: str) -> bool:
    if queue.startswith(MADE_BY_RABBITMQ):
        return True
    owner, dot, _ = queue.rpartition(".")
    return bool(user and dot) and owner == user and not queue.startswith(OUR_PREFIX)


def _refusal(reply_to: str) -> InvalidRequestError:
    return InvalidRequestError(
        ErrorCode.INVALID_REQUEST,
        f"The message may not have the property reply_to {reply_to!r}: it must name a queue that "
        "RabbitMQ has named, or one whose name before its last dot is the user name of its "
        "publisher, if the property user_id proves that.",
    )
