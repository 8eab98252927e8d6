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
"""Seconds after the last heartbeat for which a host keeps its work, and for which a command may
wait in its host's queue. A worker stops its own part earlier: see `worker/session/lease.py`."""
HEARTBEAT_INTERVAL_S = 5.0
SUSPECT_AFTER_S = 15.0
LOST_AFTER_S = float(LEASE_S)
"""Seconds without a heartbeat after which a host is LOST, and operations that may run on other
hosts go there."""
INVENTORY_INTERVAL_S = 10.0
"""Seconds between two checks of all containers by a worker."""

CONTROL_SUFFIX = ":control"
"""The end of a control queue's routing key. No host id has a colon, so none equals such a key."""
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
requests become new operations each time, because the earlier ones have ended."""

_QUORUM: Mapping[str, Argument] = {"x-queue-type": "quorum"}
_DEAD_LETTERED: Mapping[str, Argument] = {
    **_QUORUM,
    "x-dead-letter-exchange": DEAD.name,
    # A message leaves its queue only when the dead-letter queue has confirmed it. The broker
    # requires reject-publish with this strategy; without a length limit it never rejects anything.
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}

JOBS_QUEUE = Queue(
    "modelyard.jobs.v1",
    JOBS,
    SUBMIT_KEY,
    # One active consumer keeps the order of acceptance; the broker fails over to a second
    # dispatcher. 20 deliveries: a message that crashes its consumer must become a dead letter, but
    # a few restarts of the dispatcher must not turn a good message into one.
    MappingProxyType({**_DEAD_LETTERED, "x-delivery-limit": 20, "x-single-active-consumer": True}),
)
REPORTS_QUEUE = Queue(
    "modelyard.reports.v1",
    REPORTS,
    "",  # bound once for each host, when the host is first declared
    # One active consumer here too: two boots of a host are recorded in the order in which they
    # were reported, even while two dispatchers believe that they lead.
    MappingProxyType({**_DEAD_LETTERED, "x-delivery-limit": 20, "x-single-active-consumer": True}),
)
HEARTBEATS_QUEUE = Queue(
    "modelyard.heartbeats.v1",
    HEARTBEATS,
    "",
    # No dead-letter exchange: an old heartbeat is worthless.
    MappingProxyType({**_QUORUM, "x-delivery-limit": 3, "x-message-ttl": 15_000}),
)
DEAD_QUEUE = Queue(
    "modelyard.dead.v1",
    DEAD,
    "",
    # No dead-letter exchange: it would send this queue's own messages back to it.
    MappingProxyType({**_QUORUM, "x-delivery-limit": 1_000}),
)


def host_queue(host_id: str) -> Queue:
    """Return the queue of one host's commands; they wait there no longer than its lease lasts."""
    return Queue(
        f"modelyard.host.{host_id}.v1",
        HOSTS,
        host_id,
        # One active consumer, in case two workers use the same host id: each checks for another
        # consumer before it consumes, but both may check at the same moment.
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
    """Return the routing key of a host's control messages, `HostControl`."""
    return f"{host_id}{CONTROL_SUFFIX}"


def control_queue(host_id: str) -> Queue:
    """Return the queue of one host's control messages.

    Control messages must not wait behind the host's commands. One that expires unread is no loss:
    the dispatcher sends it again for as long as the records require it.
    """
    return Queue(
        f"modelyard.control.{host_id}.v1",
        HOSTS,
        control_key(host_id),
        # One active consumer: a second worker of this host id must not take the messages of the
        # first one.
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

    The control queue comes first: through it the worker learns what is wrong with the other one.
    """
    return control_queue(host_id), host_queue(host_id)
