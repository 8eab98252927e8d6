"""Heartbeats: a worker sends one only while it could execute a command."""

import asyncio
from collections.abc import Callable

import structlog

from modelyard.contract.errors import BrokerUnavailableError
from modelyard.contract.messages import Heartbeat
from worker.engine.protocol import ContainerRuntime, EngineUnavailableError
from worker.session.host_channel import HostChannel
from worker.session.lease import Lease

log = structlog.get_logger(__name__)

PING_S = 5.0
RETRY_S = 1.0
"""Seconds until a heartbeat that could not be sent is tried again."""
STUCK_S = 10.0
"""Seconds for which reports may wait without a confirmation before heartbeats stop.

A worker whose reports do not arrive is of no use to the dispatcher.
"""


class HeartbeatSender:
    """Sends heartbeats while commands come in, reports go out and the engine answers."""

    def __init__(
        self,
        channel: HostChannel,
        *,
        runtime: ContainerRuntime,
        lease: Lease,
        attached: Callable[[], bool],
        stuck_s: Callable[[], float],
        compose: Callable[[], Heartbeat],
    ) -> None:
        self.on_confirmed: Callable[[Heartbeat], None] = lambda _: None
        """Called with each heartbeat that the broker has confirmed."""
        self._channel = channel
        self._runtime = runtime
        self._lease = lease
        self._attached = attached
        self._stuck_s = stuck_s
        self._compose = compose
        self._silent = True  # until the first heartbeat

    async def run(self, *, interval_s: float) -> None:
        """Send heartbeats until cancelled; each one renews the lease.

        `interval_s` is the time from start to start. A heartbeat that could not be sent is tried
        again after `RETRY_S`.
        """
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            pause_s = interval_s if await self.beat() else min(interval_s, RETRY_S)
            await asyncio.sleep(max(0.0, began + pause_s - loop.time()))

    async def beat(self) -> bool:
        """Send one heartbeat if all conditions hold; return whether it was sent."""
        why_not = await self._send()
        if why_not is not None and not self._silent:
            log.warning("heartbeat.silent", reason=why_not)
        elif why_not is None and self._silent:
            log.info("heartbeat.beats")
        self._silent = why_not is not None
        return why_not is None

    async def _send(self) -> str | None:
        """Send one heartbeat; return the reason if it was not sent, else None."""
        if not self._attached():
            return "the consumer is not attached"
        if self._stuck_s() > STUCK_S:
            return "the broker does not confirm reports"
        try:
            async with asyncio.timeout(PING_S):
                await self._runtime.ping()
        except (TimeoutError, EngineUnavailableError):
            return "the engine does not answer"
        if self._lease.lost:
            return "the lease is lost"
        sent_at = self._lease.clock()
        try:
            heartbeat = self._compose()
            await self._channel.publish_heartbeat(heartbeat)
        except BrokerUnavailableError:
            return "the broker does not answer"
        self._lease.renew(sent_at)
        self.on_confirmed(heartbeat)
        return None
