"""Operations that are recorded and whose message has not come get their place in line here."""

from collections.abc import Callable, Iterable
from contextlib import suppress

from dispatcher.intake.positions import Positions
from modelyard.broker import Broker
from modelyard.contract.errors import BrokerUnavailableError
from modelyard.contract.message_types import OVERDUE_TYPE
from modelyard.contract.topology import JOBS, SUBMIT_KEY
from modelyard.store import Store

OVERDUE_S = 3.0
"""Age in seconds at which a recorded operation may get a place in line without its message."""
AT_ONCE = 1_000
"""Most operations that intake writes at once; no message holds more."""


class OverdueOperations:
    """Asks through the jobs queue, and puts in line once the request comes back."""

    def __init__(
        self,
        store: Store,
        broker: Broker,
        positions: Positions,
        wake: Callable[[Iterable[str]], None],
    ) -> None:
        """Call `wake` with the jobs whose operations got a place."""
        self._store = store
        self._broker = broker
        self._positions = positions
        self._wake = wake

    async def ask(self) -> None:
        """Ask through the jobs queue to put operations in line whose message has not come.

        Such an operation is in the record, but its message has not reached intake (yet). The
        request goes through the jobs queue, so intake handles it after every message published
        before it, including those that a frozen or dead dispatcher held. So no operation whose
        message is still in the queue is overtaken. Raises `StoreUnavailableError`.
        """
        overdue = await self._store.operation_queries.overdue_for_line(
            older_than_s=OVERDUE_S, limit=1
        )
        if overdue:
            with suppress(BrokerUnavailableError):  # the next sweep asks again
                await self._broker.publish(JOBS, SUBMIT_KEY, b"", message_type=OVERDUE_TYPE)

    async def put_in_line(self) -> None:
        """Give overdue operations their places, after all messages that came before."""
        overdue = await self._store.operation_queries.overdue_for_line(
            older_than_s=OVERDUE_S, limit=AT_ONCE
        )
        if overdue:
            jobs = [one.job_id for one in overdue if one.job_id]
            await self._store.jobs.ensure(jobs)
            places = await self._positions.take(len(overdue))
            await self._store.operations.put_in_line(zip(overdue, places, strict=True))
            self._wake(jobs)
