"""Which sender may send which message, by the user that RabbitMQ has verified.

RabbitMQ refuses a message whose property `user_id` is not the user of its connection (see
"Validated User-ID" in RabbitMQ's documentation), so a sender can leave the property out but can't
forge it. Nothing else proves who sent a message: the sender chooses its type, headers and routing
key freely.

If all processes share one user, as on a single machine, the dispatcher can't tell senders apart
and trusts them all.
"""

from collections.abc import Sequence

HOST_PLACEHOLDER = "{host_id}"


class Senders:
    """The RabbitMQ users of a fleet and what each of them may send."""

    def __init__(self, own: str, *, gateways: Sequence[str], workers: str) -> None:
        """`own` is the dispatcher's user; `workers` is the workers' user name with `{host_id}`."""
        self._trusted = frozenset({own, *gateways})
        self._own = own
        self._workers = workers

    def is_trusted(self, user: str | None) -> bool:
        """Tell whether a message with this user comes from a gateway or a dispatcher."""
        return user in self._trusted

    def is_dispatcher(self, user: str | None) -> bool:
        """Tell whether a message with this user comes from a dispatcher."""
        return user == self._own

    def may_speak_for(self, user: str | None, host_id: str) -> bool:
        """Tell whether a message with this user may report on a host."""
        return user in {self._own, self._workers.replace(HOST_PLACEHOLDER, host_id)}
