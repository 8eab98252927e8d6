"""Heartbeats: renew the hosts' leases, and reveal workers whose boot report was lost.

A worker reports each of its boots once, through the reports' queue. If that report is lost (the
queue was deleted, or the report could not be read), the worker sends heartbeats for an incarnation
that is not in the record. It would get no work for ever, so the dispatcher tells it to renounce
that incarnation and to begin a new one.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any

import structlog
from pydantic import ValidationError

from dispatcher.control import ControlPublisher
from dispatcher.enrolment import Enrolment
from dispatcher.maintenance.lost_hosts import LostHosts
from dispatcher.reports.beat_writer import BeatWriter
from dispatcher.senders import Senders
from modelyard.broker import Broker, Delivery, Subscription
from modelyard.contract.message_types import HELLO_TYPE
from modelyard.contract.messages import MAX_HEARTBEAT_BYTES, Heartbeat, HostHello
from modelyard.contract.topology import REPORTS_QUEUE

log = structlog.get_logger(__name__)

STRANGER_S = 30.0
"""Seconds of heartbeats of an unrecorded incarnation before its worker has to begin a new one: the
boot report is sent before the first heartbeat, but may still wait in its queue."""

KEPT_S = 600.0
"""Seconds after which the time of an unrecorded incarnation begins again: most are gone by then."""

MOST_HOSTS = 10_000
"""Hosts whose unrecorded incarnations are kept in memory; a further one takes the place of that
whose first came the longest ago."""

MOST_BOOTS = 4
"""Unrecorded incarnations that are kept of one host; a further one takes the oldest one's place."""


class UnrecordedBoots:
    """Incarnations that send heartbeats but are not recorded, and since when.

    Whatever hosts and incarnations senders make up, it keeps a bounded number of them, and a
    heartbeat costs the same however many it keeps.
    """

    def __init__(self) -> None:
        self._since: dict[str, dict[str, float]] = {}
        """By host, then by incarnation, each the oldest first."""

    def overdue(
        self, heartbeats: Iterable[Heartbeat], recorded: Mapping[str, str], now: float
    ) -> list[Heartbeat]:
        """Return the heartbeats whose incarnations have been unrecorded for too long."""
        found: list[Heartbeat] = []
        for beat in heartbeats:
            if recorded.get(beat.host_id) == beat.incarnation:
                self._since.pop(beat.host_id, None)
            elif now - self._known_since(beat, now) >= STRANGER_S:
                found.append(beat)
        return found

    def forget(self, beat: Heartbeat) -> None:
        """Start the time of this incarnation again: its worker was told to renounce it."""
        self._since.get(beat.host_id, {}).pop(beat.incarnation, None)

    def _known_since(self, beat: Heartbeat, now: float) -> float:
        if beat.host_id not in self._since:
            _make_room(self._since, MOST_HOSTS)
        boots = self._since.setdefault(beat.host_id, {})
        if now - boots.get(beat.incarnation, now) >= KEPT_S:
            del boots[beat.incarnation]
        if beat.incarnation not in boots:
            _make_room(boots, MOST_BOOTS)
        return boots.setdefault(beat.incarnation, now)


def _make_room(kept: dict[str, Any], most: int) -> None:
    """Drop the oldest entry if one more would be too many."""
    if len(kept) >= most:
        del kept[next(iter(kept))]


class Heartbeats:
    """Records the messages of `modelyard.heartbeats.v1`: heartbeats and hellos."""

    def __init__(
        self,
        writer: BeatWriter,
        broker: Broker,
        senders: Senders,
        *,
        control: ControlPublisher,
        enrolment: Enrolment,
        lost: LostHosts,
    ) -> None:
        self._writer = writer
        self._broker = broker
        self._senders = senders
        self._control = control
        self._enrolment = enrolment
        self._lost = lost
        self._strangers = UnrecordedBoots()

    async def handle(self, subscription: Subscription, batch: list[Delivery]) -> None:
        """Record a batch and settle it; raises `StoreUnavailableError`, `BrokerUnavailableError`.

        A worker whose host is LOST, or whose incarnation is not recorded for too long, is told to
        begin a new incarnation.
        """
        newest: dict[str, Heartbeat] = {}
        hellos: dict[str, HostHello] = {}
        for delivery in batch:
            sign = self._read(delivery)
            if isinstance(sign, HostHello):
                hellos[sign.host_id] = sign
            elif sign is not None:
                newest[sign.host_id] = sign
        recorded = await self._writer.write(newest)
        for beat in newest.values():
            if (beat.host_id, beat.incarnation) in self._lost.boots:
                # Its jobs may run on other hosts by now.
                await self._renounce(beat)
        await self._meet_strangers(newest.values(), recorded)
        self._enrolment.ask(hellos.values())
        await subscription.ack(batch)

    def _read(self, delivery: Delivery) -> Heartbeat | HostHello | None:
        """Return the heartbeat or hello; null (and a log line) if it is invalid or forbidden."""
        if delivery.size > MAX_HEARTBEAT_BYTES:
            log.warning("heartbeat.too_large", sender=delivery.user_id)
            return None
        kind = HostHello if delivery.type == HELLO_TYPE else Heartbeat
        try:
            sign = kind.model_validate_json(delivery.body)
        except ValidationError:
            log.warning("heartbeat.malformed", sender=delivery.user_id)
            return None
        if not self._senders.may_speak_for(delivery.user_id, sign.host_id):
            log.warning("heartbeat.forbidden", sender=delivery.user_id, host_id=sign.host_id)
            return None
        return sign

    async def _meet_strangers(
        self, heartbeats: Iterable[Heartbeat], recorded: Mapping[str, str]
    ) -> None:
        overdue = self._strangers.overdue(heartbeats, recorded, time.monotonic())
        # As long as reports wait in their queue, the boot report may be among them.
        if not overdue or await self._broker.message_count(REPORTS_QUEUE.name):
            return
        for beat in overdue:
            log.warning("host.stranger", host_id=beat.host_id, incarnation=beat.incarnation)
            await self._renounce(beat)
            self._strangers.forget(beat)

    async def _renounce(self, beat: Heartbeat) -> None:
        await self._control.send(beat.host_id, beat.incarnation, renounce=True)
