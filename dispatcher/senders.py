"""Who may say what: decided by the user that RabbitMQ has verified on a message.

RabbitMQ refuses a message whose property `user_id` is not the user of its connection (see
"Validated User-ID" in RabbitMQ's documentation), so the property can be left out but not forged.
Nothing else of a message proves who sent it: its type, its headers and its routing key are the
sender's own words.

Where all processes share one user, as on one machine, the dispatcher can't tell senders apart and
trusts them all.
"""

from collections.abc import Sequence

HOST_PLACEHOLDER = "{host_id}"


class Senders:
    """The users of a fleet and what each of them may say."""

    def __init__(self, own: str, *, gateways: Sequence[str], workers: str) -> None:
        """`own` is the dispatcher's user; `workers` is a worker's, with `{host_id}` in it."""
        self._trusted = frozenset({own, *gateways})
        self._own = own
        self._workers = workers

    def is_trusted(self, user: str | None) -> bool:
        """Tell whether a message comes from a gateway or a dispatcher."""
        return user in self._trusted

    def is_dispatcher(self, user: str | None) -> bool:
        """Tell whether a message comes from a dispatcher."""
        return user == self._own

    def may_speak_for(self, user: str | None, host_id: str) -> bool:
        """Tell whether a message may report on a host."""
        return user in {self._own, self._workers.replace(HOST_PLACEHOLDER, host_id)}
