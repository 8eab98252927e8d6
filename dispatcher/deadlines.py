"""Deadlines that hold even where a worker does not keep them.

The worker ends what runs for too long; here is who ends it when the worker hangs, and who gives up
on a host that never accepts what it is given.
"""

import structlog

from dispatcher.attempts import Attempts
from dispatcher.cancels import tell_to_cancel
from dispatcher.control import Control
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.states import OperationState
from modelyard.contract.topology import LEASE_S
from modelyard.store import Store

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
    """Two repairs of the sweep. Both raise `StoreUnavailableError`."""

    def __init__(
        self, store: Store, control: Control, attempts: Attempts, *, default_timeout_s: float
    ) -> None:
        self._store = store
        self._control = control
        self._attempts = attempts
        self._default_timeout_s = default_timeout_s

    async def time_out(self) -> None:
        """Remind workers of operations whose time is over, and end those that go on."""
        late = await self._store.operations.running_too_long(
            default_timeout_s=self._default_timeout_s, slack_s=REMIND_AFTER_S, limit=LIMIT
        )
        if not late:
            return
        await tell_to_cancel(self._control, late, "timed_out")
        too_late = await self._store.operations.running_too_long(
            default_timeout_s=self._default_timeout_s, slack_s=GIVE_UP_AFTER_S, limit=LIMIT
        )
        for one in too_late:
            log.warning("operation.overran", operation_id=one.operation_id, host_id=one.host_id)
            await self._attempts.end(
                one, ErrorInfo.of(ErrorCode.TIMED_OUT), OperationState.TIMED_OUT
            )

    async def give_up_unaccepted(self) -> None:
        """Take operations away from hosts that live and do not accept them."""
        ignored = await self._store.operations.never_accepted(
            older_than_s=NOT_ACCEPTED_S, limit=LIMIT
        )
        for one in ignored:
            log.warning("operation.not_accepted", operation_id=one.operation_id, host=one.host_id)
            await tell_to_cancel(self._control, [one], "stale")
            await self._attempts.failed(one, ErrorInfo.of(ErrorCode.NOT_ACCEPTED))
