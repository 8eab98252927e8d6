"""The sign of life: sent only by a worker that could do work now."""

import asyncio
from collections.abc import Callable

import structlog

from modelyard.broker import Broker
from modelyard.contract.errors import BrokerUnavailableError
from modelyard.contract.message_types import HEARTBEATS_TYPE
from modelyard.contract.messages import Heartbeat
from modelyard.contract.topology import HEARTBEATS
from worker.engine.protocol import ContainerRuntime, EngineUnavailableError
from worker.session.lease import Lease

log = structlog.get_logger(__name__)

PING_S = 5.0
RETRY_S = 1.0
"""Seconds until a beat that could not be sent is tried again."""
STUCK_S = 10.0
"""Seconds after which reports that nobody takes silence the heart: nothing is heard of the work."""


class HeartbeatSender:
    """Beats if commands come in, reports go out and Docker answers."""

    def __init__(  # noqa: PLR0913 - what has to be true for a beat
        self,
        *,
        broker: Broker,
        runtime: ContainerRuntime,
        lease: Lease,
        attached: Callable[[], bool],
        stuck_s: Callable[[], float],
        compose: Callable[[], Heartbeat],
    ) -> None:
        self._broker = broker
        self._runtime = runtime
        self._lease = lease
        self._attached = attached
        self._stuck_s = stuck_s
        self._compose = compose
        self._silent = True  # until the first one

    async def run(self, *, interval_s: float) -> None:
        """Beat until cancelled; each beat renews the lease.

        Beats are spaced from start to start, not from end to start; one that could not be sent is
        tried again soon.
        """
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            pause_s = interval_s if await self.beat() else min(interval_s, RETRY_S)
            await asyncio.sleep(max(0.0, began + pause_s - loop.time()))

    async def beat(self) -> bool:
        """Send one heartbeat if it would be true; return whether it was sent."""
        why_not = await self._send()
        if why_not is not None and not self._silent:
            log.warning("heartbeat.silent", reason=why_not)
        elif why_not is None and self._silent:
            log.info("heartbeat.beats")
        self._silent = why_not is not None
        return why_not is None

    async def _send(self) -> str | None:
        """Return why there was no heartbeat, or None if there was."""
        if not self._attached():
            return "the consumer is not attached"
        if self._stuck_s() > STUCK_S:
            return "the reports are not taken"
        try:
            async with asyncio.timeout(PING_S):
                await self._runtime.ping()
        except (TimeoutError, EngineUnavailableError):
            return "the engine does not answer"
        if self._lease.lost:
            return "the lease is over"
        sent_at = self._lease.clock()
        try:
            await self._broker.publish(
                HEARTBEATS,
                "",
                self._compose().model_dump_json().encode(),
                message_type=HEARTBEATS_TYPE,
                mandatory=False,
                persistent=False,
            )
        except BrokerUnavailableError:
            return "the broker does not answer"
        self._lease.renew(sent_at)
        return None
