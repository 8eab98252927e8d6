"""Deadlines: the dispatcher enforces them where a worker does not.

A worker ends an operation that exceeds its timeout. If the worker hangs, the dispatcher ends it; it
also fails the attempt if the worker never accepts the command.

An operation may only look overdue: while MongoDB or the dispatchers were down, its worker's report
may have waited in the reports' queue. So `remind` sends a request through that queue, and `enforce`
runs when every report before the request has been recorded.
"""

from contextlib import suppress

import structlog

from dispatcher.control import ControlPublisher
from dispatcher.maintenance.cancels import tell_to_cancel
from dispatcher.maintenance.retries import Retries
from modelyard.broker import Broker
from modelyard.contract.errors import BrokerUnavailableError, ErrorCode, ErrorInfo
from modelyard.contract.message_types import OVERDUE_REPORTS_TYPE
from modelyard.contract.states import OperationState, Verb
from modelyard.contract.topology import LEASE_S, REPORTS, REPORTS_QUEUE
from modelyard.process.crash_points import crash_point
from modelyard.store import Store
from modelyard.store.records import OperationRecord

log = structlog.get_logger(__name__)

REMIND_AFTER_S = 5.0
"""Seconds past an operation's timeout after which its worker is told to end it."""
GIVE_UP_AFTER_S = 30.0
"""Seconds past its timeout after which the dispatcher ends an operation without a report. It is
longer than a worker may take to find the cause of a timeout before it reports."""
NOT_ACCEPTED_S = 1.5 * LEASE_S
"""Seconds after which a command that its worker has not accepted is a failed attempt."""
LIMIT = 200
_MAY_BE_REPEATED = frozenset(Verb) - {Verb.INFER}
"""An inference may have begun although its worker has not reported it. Its command is published
again until the worker reports it or refuses it, or until the worker boots or its host is lost."""


class Deadlines:
    """A repair of the sweep, in two steps. Both raise `StoreUnavailableError`."""

    def __init__(
        self,
        store: Store,
        broker: Broker,
        control: ControlPublisher,
        retries: Retries,
        *,
        default_timeout_s: float,
    ) -> None:
        self._store = store
        self._broker = broker
        self._control = control
        self._retries = retries
        self._default_timeout_s = default_timeout_s

    async def remind(self) -> None:
        """Remind workers of operations past their timeout; request `enforce` if any is overdue."""
        late = await self._running_too_long(REMIND_AFTER_S)
        await tell_to_cancel(self._control, late, "timed_out")
        too_late = bool(late) and await self._running_too_long(GIVE_UP_AFTER_S)
        if too_late or await self._never_accepted():
            with suppress(BrokerUnavailableError):  # the next sweep requests it again
                await self._broker.publish(
                    REPORTS, REPORTS_QUEUE.routing_key, b"", message_type=OVERDUE_REPORTS_TYPE
                )

    async def enforce(self) -> None:
        """End operations far past their timeout, and fail attempts that no worker accepted.

        The caller has recorded all earlier reports.
        """
        for one in await self._running_too_long(GIVE_UP_AFTER_S):
            log.warning("operation.overran", operation_id=one.operation_id, host_id=one.host_id)
            await self._retries.end(
                one, ErrorInfo.of(ErrorCode.TIMED_OUT), OperationState.TIMED_OUT
            )
            crash_point("dispatcher.deadlines.after_end")
        for one in await self._never_accepted():
            log.warning(
                "operation.not_accepted", operation_id=one.operation_id, host_id=one.host_id
            )
            await tell_to_cancel(self._control, [one], "stale")
            await self._retries.failed(one, ErrorInfo.of(ErrorCode.NOT_ACCEPTED))

    async def _running_too_long(self, slack_s: float) -> list[OperationRecord]:
        return await self._store.operation_queries.running_too_long(
            default_timeout_s=self._default_timeout_s, slack_s=slack_s, limit=LIMIT
        )

    async def _never_accepted(self) -> list[OperationRecord]:
        return await self._store.operation_queries.never_accepted(
            verbs=_MAY_BE_REPEATED, older_than_s=NOT_ACCEPTED_S, limit=LIMIT
        )
