"""RabbitMQ's definitions for a fleet: users, permissions and topology in one document; no I/O.

Source: RabbitMQ's documentation, "Definition Export and Import" and "Passwords" (a password's hash
is base64 of the salt and of SHA-256 over salt and password).
"""

import base64
import hashlib
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence

from modelyard.contract.rabbitmq.permissions import Permissions
from modelyard.contract.strict_json import JsonValue
from modelyard.contract.topology import (
    DEAD_QUEUE,
    EXCHANGES,
    HEARTBEATS_QUEUE,
    JOBS_QUEUE,
    REPORTS_QUEUE,
    Queue,
    queues_of_host,
)

SHARED_QUEUES = (JOBS_QUEUE, REPORTS_QUEUE, HEARTBEATS_QUEUE, DEAD_QUEUE)
"""The queues that every fleet has, whatever its hosts are."""
_SALT_BYTES = 4


def definitions(
    vhost: str,
    users: Sequence[Permissions],
    passwords: Mapping[str, str],
    *,
    host_ids: Sequence[str],
) -> dict[str, JsonValue]:
    """Return the document that `rabbitmqctl import_definitions` takes.

    `passwords` has one for each user. Importing it again changes nothing but the passwords.
    """
    queues = [*SHARED_QUEUES, *(queue for one in host_ids for queue in queues_of_host(one))]
    return {
        "vhosts": [{"name": vhost}],
        "users": [_user(one.user, passwords[one.user]) for one in users],
        "permissions": [
            {
                "user": one.user,
                "vhost": vhost,
                "configure": one.configure,
                "write": one.write,
                "read": one.read,
            }
            for one in users
        ],
        "topic_permissions": list(_topic_permissions(vhost, users)),
        "exchanges": [
            {
                "name": one.name,
                "vhost": vhost,
                "type": one.type.value,
                "durable": True,
                "auto_delete": False,
                "internal": False,
                "arguments": {},
            }
            for one in EXCHANGES
        ],
        "queues": [
            {
                "name": one.name,
                "vhost": vhost,
                "durable": True,
                "auto_delete": False,
                "arguments": dict(one.arguments),
            }
            for one in queues
        ],
        "bindings": list(_bindings(vhost, queues, host_ids)),
    }


def _user(name: str, password: str) -> JsonValue:
    salt = secrets.token_bytes(_SALT_BYTES)
    digest = hashlib.sha256(salt + password.encode()).digest()
    return {
        "name": name,
        "password_hash": base64.b64encode(salt + digest).decode("ascii"),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        # Without a tag the user may neither open the management pages nor publish as another user.
        "tags": "",
    }


def _topic_permissions(vhost: str, users: Iterable[Permissions]) -> Iterator[JsonValue]:
    for one in users:
        if one.publishes is not None:
            exchange, keys = one.publishes
            yield {
                "user": one.user,
                "vhost": vhost,
                "exchange": exchange,
                "write": keys,
                "read": "^$",
            }


def _bindings(vhost: str, queues: Iterable[Queue], host_ids: Iterable[str]) -> Iterator[JsonValue]:
    wanted = [(queue, queue.routing_key) for queue in queues]
    wanted += [(REPORTS_QUEUE, host_id) for host_id in host_ids]
    for queue, routing_key in wanted:
        yield {
            "source": queue.exchange.name,
            "vhost": vhost,
            "destination": queue.name,
            "destination_type": "queue",
            "routing_key": routing_key,
            "arguments": {},
        }
