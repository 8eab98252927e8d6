"""Exchanges, queues and their arguments: the wire names of Modelyard, as values.

Every queue is a durable quorum queue with an explicit delivery limit and, but for heartbeats, a
dead-letter exchange. Arguments can't be changed on a queue that exists: a change is a new name.
Sources: RabbitMQ's documentation of quorum queues, TTL and dead lettering, 3.10 to 4.x.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

Argument = str | int | bool

LEASE_S = 60
"""Seconds a worker's lease lasts, and a command's life in a host's queue."""
HEARTBEAT_INTERVAL_S = 5.0
SUSPECT_AFTER_S = 15.0
LOST_AFTER_S = float(LEASE_S)
"""Seconds without a heartbeat after which a host is given up, and what may run elsewhere does."""
INVENTORY_INTERVAL_S = 10.0
"""Seconds between two looks of a worker at all of its containers."""

CONTROL_SUFFIX = ":control"
"""Ends a routing key of `modelyard.hosts`; no host id has a colon, so none is such a key."""
CONTROL_TTL_S = 15
"""Seconds that a control message waits for its worker."""


class ExchangeType(StrEnum):
    """AMQP 0-9-1 exchange types in use."""

    TOPIC = "topic"
    DIRECT = "direct"
    FANOUT = "fanout"


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange."""

    name: str
    type: ExchangeType


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable quorum queue and its binding."""

    name: str
    exchange: Exchange
    routing_key: str
    arguments: Mapping[str, Argument] = field(default_factory=dict)


JOBS = Exchange("modelyard.jobs", ExchangeType.TOPIC)
HOSTS = Exchange("modelyard.hosts", ExchangeType.DIRECT)
REPORTS = Exchange("modelyard.reports", ExchangeType.DIRECT)
EVENTS = Exchange("modelyard.events", ExchangeType.TOPIC)
HEARTBEATS = Exchange("modelyard.heartbeats", ExchangeType.FANOUT)
DEAD = Exchange("modelyard.dead", ExchangeType.FANOUT)

EXCHANGES = (JOBS, HOSTS, REPORTS, EVENTS, HEARTBEATS, DEAD)

SUBMIT_KEY = "job.submit"
REPLAY_HEADER = "x-modelyard-replay"
"""On a dead letter of the jobs queue that is published again: `<dead_letter_id>:<times>`. Its
requests become operations of their own, for those of the first time have ended."""

_QUORUM: Mapping[str, Argument] = {"x-queue-type": "quorum"}
_DEAD_LETTERED: Mapping[str, Argument] = {
    **_QUORUM,
    "x-dead-letter-exchange": DEAD.name,
    # The letter leaves its queue only when the dead-letter queue has confirmed it. The broker
    # wants reject-publish with it; without a length limit that never refuses anything.
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}

JOBS_QUEUE = Queue(
    "modelyard.jobs.v1",
    JOBS,
    SUBMIT_KEY,
    # One active consumer keeps the order of acceptance; failover to a second dispatcher is the
    # broker's. 20 deliveries: a message that crashes its consumer must end, a dispatcher that is
    # restarted now and then must not lose one.
    MappingProxyType({**_DEAD_LETTERED, "x-delivery-limit": 20, "x-single-active-consumer": True}),
)
REPORTS_QUEUE = Queue(
    "modelyard.reports.v1",
    REPORTS,
    "",  # bound once for each host, when the host is first declared
    # One active consumer here too: two boots of a host are recorded in the order in which they
    # were reported, whoever of two dispatchers is slow.
    MappingProxyType({**_DEAD_LETTERED, "x-delivery-limit": 20, "x-single-active-consumer": True}),
)
HEARTBEATS_QUEUE = Queue(
    "modelyard.heartbeats.v1",
    HEARTBEATS,
    "",
    # No dead-letter exchange: a heartbeat that nobody took in time is worth nothing.
    MappingProxyType({**_QUORUM, "x-delivery-limit": 3, "x-message-ttl": 15_000}),
)
DEAD_QUEUE = Queue(
    "modelyard.dead.v1",
    DEAD,
    "",
    # The last stop: a dead-letter exchange of its own would be a circle.
    MappingProxyType({**_QUORUM, "x-delivery-limit": 1_000}),
)


def host_queue(host_id: str) -> Queue:
    """Return the queue that holds one host's commands; they live no longer than the lease."""
    return Queue(
        f"modelyard.host.{host_id}.v1",
        HOSTS,
        host_id,
        # One active consumer, should two workers ever carry the same name: the second one looks
        # before it consumes, but two may look at the same moment.
        MappingProxyType(
            {
                **_DEAD_LETTERED,
                "x-delivery-limit": 20,
                "x-message-ttl": LEASE_S * 1_000,
                "x-single-active-consumer": True,
            }
        ),
    )


def control_key(host_id: str) -> str:
    """Return the routing key of what must not wait behind a host's commands: `HostControl`."""
    return f"{host_id}{CONTROL_SUFFIX}"


def control_queue(host_id: str) -> Queue:
    """Return the queue of one host's control messages.

    Nobody misses a message that the worker did not take in time: its sender repeats it for as long
    as the record asks for it.
    """
    return Queue(
        f"modelyard.control.{host_id}.v1",
        HOSTS,
        control_key(host_id),
        # One active consumer: a second worker of this host id must not take the first one's.
        MappingProxyType(
            {
                **_QUORUM,
                "x-delivery-limit": 3,
                "x-message-ttl": CONTROL_TTL_S * 1_000,
                "x-single-active-consumer": True,
            }
        ),
    )


def queues_of_host(host_id: str) -> tuple[Queue, Queue]:
    """Return the two queues that a host's worker reads; a dispatcher declares them.

    The one for control comes first: by it the worker hears what is wrong with the other one.
    """
    return control_queue(host_id), host_queue(host_id)
