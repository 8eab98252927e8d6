"""Deadlines that hold even where a worker does not keep them.

The worker ends what runs for too long; here is who ends it when the worker hangs, and who gives up
on a host that never accepts what it is given.

A worker's word may lie unread in the reports' queue: while MongoDB or the dispatchers were away,
time went by and nothing was recorded. So what looks overdue is judged by way of that queue, when
all that was told before has been read.
"""

from contextlib import suppress

import structlog

from dispatcher.control import ControlPublisher
from dispatcher.maintenance.cancels import tell_to_cancel
from dispatcher.maintenance.retries import Retries
from modelyard.broker import Broker
from modelyard.contract.errors import BrokerUnavailableError, ErrorCode, ErrorInfo
from modelyard.contract.message_types import OVERDUE_REPORTS_TYPE
from modelyard.contract.states import OperationState
from modelyard.contract.topology import LEASE_S, REPORTS, REPORTS_QUEUE
from modelyard.process.crash_points import crash_point
from modelyard.store import Store
from modelyard.store.records import OperationRecord

log = structlog.get_logger(__name__)

REMIND_AFTER_S = 5.0
"""Seconds past its timeout after which the worker is told to end an operation."""
GIVE_UP_AFTER_S = 30.0
"""Seconds past its timeout after which an operation ends without the worker's word: longer than a
worker may look for a cause before it reports."""
NOT_ACCEPTED_S = 1.5 * LEASE_S
"""Seconds after which a command that nobody accepted counts as a failed attempt."""
LIMIT = 200


class Deadlines:
    """A repair of the sweep, in two parts. Both raise `StoreUnavailableError`."""

    def __init__(
        self,
        store: Store,
        broker: Broker,
        control: ControlPublisher,
        attempts: Retries,
        *,
        default_timeout_s: float,
    ) -> None:
        self._store = store
        self._broker = broker
        self._control = control
        self._attempts = attempts
        self._default_timeout_s = default_timeout_s

    async def look(self) -> None:
        """Remind workers of what runs for too long; ask for a judgement if something is overdue."""
        late = await self._too_long(REMIND_AFTER_S)
        await tell_to_cancel(self._control, late, "timed_out")
        too_late = bool(late) and await self._too_long(GIVE_UP_AFTER_S)
        if too_late or await self._ignored():
            with suppress(BrokerUnavailableError):  # it is asked again
                await self._broker.publish(
                    REPORTS, REPORTS_QUEUE.routing_key, b"", message_type=OVERDUE_REPORTS_TYPE
                )

    async def enforce(self) -> None:
        """End what goes on past its time, and take away what no worker accepts.

        All that was reported before has to be recorded by now.
        """
        for one in await self._too_long(GIVE_UP_AFTER_S):
            log.warning("operation.overran", operation_id=one.operation_id, host_id=one.host_id)
            await self._attempts.end(
                one, ErrorInfo.of(ErrorCode.TIMED_OUT), OperationState.TIMED_OUT
            )
            crash_point("dispatcher.deadlines.after_end")
        for one in await self._ignored():
            log.warning("operation.not_accepted", operation_id=one.operation_id, host=one.host_id)
            await tell_to_cancel(self._control, [one], "stale")
            await self._attempts.failed(one, ErrorInfo.of(ErrorCode.NOT_ACCEPTED))

    async def _too_long(self, slack_s: float) -> list[OperationRecord]:
        return await self._store.operation_queries.running_too_long(
            default_timeout_s=self._default_timeout_s, slack_s=slack_s, limit=LIMIT
        )

    async def _ignored(self) -> list[OperationRecord]:
        return await self._store.operation_queries.never_accepted(
            older_than_s=NOT_ACCEPTED_S, limit=LIMIT
        )
