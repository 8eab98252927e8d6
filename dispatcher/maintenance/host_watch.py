"""Watching hosts: SUSPECT and LOST after a silence that is theirs, and not this dispatcher's."""

import time

import structlog

from dispatcher.events import EventLog, host_event
from dispatcher.maintenance.lost_hosts import LostHosts
from dispatcher.scheduling.scheduler import Scheduler
from modelyard.broker import Broker
from modelyard.contract.errors import BrokerUnavailableError
from modelyard.contract.states import Admission, Liveness
from modelyard.contract.topology import HEARTBEATS_QUEUE, JOBS, LOST_AFTER_S, SUSPECT_AFTER_S
from modelyard.process.crash_points import crash_point
from modelyard.store import Store

log = structlog.get_logger(__name__)

HEARING_BEFORE_SUSPECT_S = SUSPECT_AFTER_S
HEARING_BEFORE_LOST_S = 30.0
"""Seconds for which this dispatcher must have received heartbeats before it marks a host LOST:
longer than workers take to reconnect to a broker that was down."""
PROBE_KEY = "dispatcher.probe"
"""A routing key to which no queue is bound: the broker confirms the message and drops it."""
PROBE_S = 3.0


class HostWatch:
    """A repair of the sweep: takes the work from hosts whose heartbeats stopped."""

    def __init__(
        self,
        store: Store,
        broker: Broker,
        event_log: EventLog,
        scheduler: Scheduler,
        lost: LostHosts,
    ) -> None:
        self._store = store
        self._broker = broker
        self._event_log = event_log
        self._scheduler = scheduler
        self._lost = lost
        self._hearing_since = time.monotonic()
        self._seen: dict[str, tuple[Liveness, Admission]] = {}
        """Hosts as they were at the last look."""

    def restart_hearing(self) -> None:
        """Blame no host for the silence until now: heartbeats could not be recorded."""
        self._hearing_since = time.monotonic()

    async def watch(self) -> None:
        """Mark silent hosts SUSPECT and LOST; wake what waits when a host is back or admitted."""
        hosts = self._store.hosts
        if await hosts.any_silent(suspect_s=SUSPECT_AFTER_S, lost_s=LOST_AFTER_S):
            if not await self._can_hear():
                self._hearing_since = time.monotonic()
            hearing_s = time.monotonic() - self._hearing_since
            if hearing_s >= HEARING_BEFORE_SUSPECT_S:
                silent = await hosts.suspect_silent(after_s=SUSPECT_AFTER_S)
                if silent:
                    crash_point("dispatcher.sweep.after_suspect")
                for host_id in silent:
                    log.warning("host.suspect", host_id=host_id, after_s=SUSPECT_AFTER_S)
                await self._event_log.publish(
                    [host_event(host_id, "suspect", None) for host_id in silent]
                )
            if hearing_s >= HEARING_BEFORE_LOST_S:
                await self._lost.give_up()
        await self._lost.take_away()
        await self._wake_for_changed_hosts()

    async def _can_hear(self) -> bool:
        """Tell whether heartbeats can reach the record; if not, the hosts are not to blame.

        A broker under a memory alarm accepts no messages from anyone. If heartbeats wait in their
        queue, no dispatcher consumes them.
        """
        try:
            await self._broker.publish(
                JOBS,
                PROBE_KEY,
                b"",
                mandatory=False,
                persistent=False,
                timeout_s=PROBE_S,
            )
            return await self._broker.message_count(HEARTBEATS_QUEUE.name) == 0
        except BrokerUnavailableError:
            return False

    async def _wake_for_changed_hosts(self) -> None:
        seen = await self._store.hosts.standings()
        changed = [host_id for host_id, now in seen.items() if self._seen.get(host_id) != now]
        self._seen = seen
        # Heartbeats and gateways write these without marking the host in memory.
        self._store.changes.written(hosts=changed)
        if any(seen[host_id][0] is Liveness.ONLINE for host_id in changed):
            self._scheduler.wake_waiting()
