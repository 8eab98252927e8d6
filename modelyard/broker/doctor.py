"""Whether RabbitMQ is there, lets this process in, and lets it do what it has to."""

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import aio_pika
import aiormq
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import (
    AuthenticationError,
    ChannelClosed,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ProbableAuthenticationError,
)
from aiormq.exceptions import ChannelAccessRefused, ConnectionClosed, InvalidFrameError

from modelyard.broker.connection import user_of
from modelyard.broker.connection_loss import close_quietly
from modelyard.contract.topology import Exchange, Queue
from modelyard.doctor.diagnosis import Diagnosis, failure, ok, version_of, warning

ABOUT = "broker"
OLDEST = (3, 10)
WITHIN_S = 5.0
"""For each step; a broker that takes longer is of no use to a service either."""

_DEFINITIONS = (
    "Print the users with their permissions by `modelyard rabbitmq definitions` and import them."
)
_GONE = (AuthenticationError, ProbableAuthenticationError)


@dataclass(frozen=True, slots=True)
class BrokerDuties:
    """What a service does on RabbitMQ."""

    publishes_to: Exchange
    declares: Sequence[Queue] = ()
    """Queues that the service declares at its start."""
    needs: Sequence[Queue] = ()
    """Queues that another process declares."""


async def check_broker(url: str, duties: BrokerDuties) -> list[Diagnosis]:
    """Look at the broker as a service with these duties sees it. Nothing is changed there."""
    place = _place(url)
    connection: AbstractConnection | None = None
    try:
        async with asyncio.timeout(WITHIN_S):
            connection = await aio_pika.connect(
                url, client_properties={"connection_name": "modelyard doctor"}
            )
        return [
            ok(ABOUT, f"{place} lets the user {user_of(url)} in"),
            _version(connection),
            await _publishing(connection, url, duties.publishes_to),
            *[await _declared(connection, queue) for queue in duties.declares],
            *[await _present(connection, queue) for queue in duties.needs],
        ]
    except (OSError, TimeoutError, aiormq.exceptions.AMQPError, RuntimeError) as error:
        return [_unreachable(url, place, error)]
    finally:
        if connection is not None:
            await close_quietly(connection)


def _unreachable(url: str, place: str, error: Exception) -> Diagnosis:
    if isinstance(error, _GONE):
        return failure(
            ABOUT,
            f"{place} refuses the user {user_of(url)} or the password",
            "Correct user and password in MODELYARD_AMQP_URL, with special characters as %XX. "
            "RabbitMQ lets `guest` in from its own machine only. " + _DEFINITIONS,
        )
    if isinstance(error, ConnectionClosed | InvalidFrameError):  # the library drops the reason
        vhost = unquote(urlsplit(url).path.removeprefix("/")) or "/"
        return failure(
            ABOUT,
            f"{place} has no virtual host {vhost}, or does not let the user {user_of(url)} use it",
            "Correct the virtual host at the end of MODELYARD_AMQP_URL (%2f is /), or give the "
            "user permissions for it. " + _DEFINITIONS,
        )
    if isinstance(error, ssl.SSLError) or isinstance(error.__cause__, ssl.SSLError):
        return failure(
            ABOUT,
            f"{place}: TLS failed: {error}",
            "Check that this port speaks TLS, and that this machine trusts the certificate.",
        )
    said = f"does not answer within {WITHIN_S:g} s" if isinstance(error, TimeoutError) else error
    return failure(
        ABOUT,
        f"{place} can't be reached: {said}",
        "Check that RabbitMQ runs, that MODELYARD_AMQP_URL names its host and its port, and that "
        "no firewall is between.",
    )


def _version(connection: AbstractConnection) -> Diagnosis:
    transport = connection.transport
    properties: Any = transport.connection.server_properties if transport else {}
    found = str(properties.get("version", "unknown"))
    if version_of(found) >= OLDEST:
        return ok(ABOUT, f"RabbitMQ {found}")
    return failure(
        ABOUT, f"RabbitMQ {found}", f"Upgrade RabbitMQ to {'.'.join(map(str, OLDEST))} or newer."
    )


async def _publishing(connection: AbstractConnection, url: str, exchange: Exchange) -> Diagnosis:
    """Publish messages that no queue gets: it needs the permission, and a broker without alarms.

    While an alarm is on, RabbitMQ takes the first message of a connection, and reads no further.
    """
    channel = await connection.channel()
    message = aio_pika.Message(b"", user_id=user_of(url))
    try:
        async with asyncio.timeout(WITHIN_S):
            target = await channel.get_exchange(exchange.name, ensure=False)
            for _ in range(2):
                await target.publish(message, "doctor:probe", mandatory=False)
    except TimeoutError:
        return failure(
            ABOUT,
            f"RabbitMQ takes no messages for {exchange.name} (nothing for {WITHIN_S:g} s)",
            "Look at `rabbitmq-diagnostics alarms`: it blocks publishers while its memory or its "
            "disk is short. Free some, or raise vm_memory_high_watermark or disk_free_limit.",
        )
    except ChannelNotFoundEntity:
        return warning(
            ABOUT,
            f"the exchange {exchange.name} does not exist yet",
            "A dispatcher declares it when it starts.",
        )
    except (ChannelAccessRefused, ChannelClosed) as error:
        return failure(ABOUT, f"may not publish to {exchange.name}: {error}", _DEFINITIONS)
    return ok(ABOUT, f"may publish to {exchange.name}, and no alarm blocks it")


async def _declared(connection: AbstractConnection, queue: Queue) -> Diagnosis:
    """Declare a queue that exists: that changes nothing, and needs the permission."""
    if (present := await _present(connection, queue)).advice is not None:
        return present
    channel = await connection.channel()
    try:
        async with asyncio.timeout(WITHIN_S):
            await channel.declare_queue(queue.name, durable=True, arguments=dict(queue.arguments))
    except ChannelPreconditionFailed as error:
        return failure(
            ABOUT,
            f"{queue.name} has other arguments: {error}",
            "Another version has declared it. When it is empty, delete it in RabbitMQ; the service "
            "declares it again.",
        )
    except ChannelAccessRefused as error:
        return failure(ABOUT, f"may not declare {queue.name}: {error}", _DEFINITIONS)
    return ok(ABOUT, f"may declare {queue.name}")


async def _present(connection: AbstractConnection, queue: Queue) -> Diagnosis:
    channel = await connection.channel()
    try:
        async with asyncio.timeout(WITHIN_S):
            await channel.declare_queue(queue.name, passive=True)
    except ChannelNotFoundEntity:
        return warning(
            ABOUT,
            f"the queue {queue.name} does not exist yet",
            "A dispatcher declares it when it starts, and the queues of a host when its worker "
            "starts.",
        )
    except ChannelAccessRefused as error:
        return failure(ABOUT, f"may not look at {queue.name}: {error}", _DEFINITIONS)
    return ok(ABOUT, f"{queue.name} is there")


def _place(url: str) -> str:
    parts = urlsplit(url)
    port = parts.port or (5671 if parts.scheme == "amqps" else 5672)
    return f"RabbitMQ at {parts.hostname or 'localhost'}:{port}"
