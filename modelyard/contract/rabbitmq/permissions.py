"""RabbitMQ's users, by role, and what each of them may do; `modelyard rabbitmq` prints it.

Source: RabbitMQ's documentation, "Access Control": a permission is three regular expressions over
the names of queues and exchanges, for configure, write and read.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from modelyard.contract.topology import (
    DEAD,
    DEAD_QUEUE,
    EVENTS,
    HEARTBEATS,
    JOBS,
    JOBS_QUEUE,
    REPORTS,
    SUBMIT_KEY,
    queues_of_host,
)

GATEWAY_USER = "gateway"
DISPATCHER_USER = "dispatcher"
WORKER_USER = "worker-{host_id}"
"""The worker of each host has a user of its own, which proves whose reports they are."""

_OWN_QUEUES = r"amq\.gen-.*"
"""Queues that a process has declared for itself, named by RabbitMQ."""


@dataclass(frozen=True, slots=True)
class Permissions:
    """What one user may do in Modelyard's virtual host."""

    user: str
    configure: str
    write: str
    read: str
    publishes: tuple[str, str] | None = None
    """An exchange and the routing keys that the user may publish there, as an expression."""


def dispatcher(user: str = DISPATCHER_USER) -> Permissions:
    """Return the permissions of the dispatchers, which declare everything.

    They answer publishers through the default exchange, which permissions call `amq.default`.
    """
    everything = r"^modelyard\."
    return Permissions(user, everything, r"^(modelyard\.|amq\.default$)", everything)


def gateway(user: str = GATEWAY_USER) -> Permissions:
    """Return the permissions of a gateway.

    It may declare the jobs queue, so that it accepts requests before a dispatcher has ever run.
    """
    own = (JOBS.name, DEAD.name, JOBS_QUEUE.name, DEAD_QUEUE.name)
    return Permissions(
        user,
        configure=_names(*own, EVENTS.name, expressions=(_OWN_QUEUES,)),
        write=_names(*own, expressions=(_OWN_QUEUES,)),
        read=_names(JOBS.name, DEAD.name, JOBS_QUEUE.name, EVENTS.name, expressions=(_OWN_QUEUES,)),
    )


def worker(host_id: str, user: str | None = None) -> Permissions:
    """Return the permissions of one host's worker: its own two queues, and what it reports."""
    return Permissions(
        user or WORKER_USER.format(host_id=host_id),
        configure="^$",
        write=_names(REPORTS.name, HEARTBEATS.name),
        read=_names(*(queue.name for queue in queues_of_host(host_id))),
    )


def publisher(user: str) -> Permissions:
    """Return the permissions of a service that sends requests."""
    keys = f"^{re.escape(SUBMIT_KEY)}$"
    return Permissions(user, "^$", _names(JOBS.name), "^$", publishes=(JOBS.name, keys))


def subscriber(user: str) -> Permissions:
    """Return the permissions of a service that listens to events with queues named `USER.WORD`.

    The word has no dot: `shop.eu.all` is a queue of the user `shop.eu`, and not of `shop`.
    """
    own = f"{re.escape(user)}\\.[^.]+"
    return Permissions(
        user,
        configure=_names(expressions=(own,)),
        write=_names(expressions=(own,)),
        read=_names(EVENTS.name, expressions=(own,)),
    )


def _names(*names: str, expressions: Sequence[str] = ()) -> str:
    return f"^({'|'.join([*map(re.escape, names), *expressions])})$"
