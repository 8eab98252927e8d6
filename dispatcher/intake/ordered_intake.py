"""Taking operations in step by step, where the record has to be read before anything is decided.

For messages that come again, ids that are recorded already, and jobs with operations whose messages
the broker did not confirm. What a crash leaves behind is found by the message's next delivery.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog

from dispatcher.events import EventLog, operation_event
from dispatcher.intake.order import in_order
from dispatcher.intake.positions import Positions
from modelyard.contract.states import OperationState
from modelyard.process.tasks import together
from modelyard.store import Store
from modelyard.store.operation_queries import KnownOperation
from modelyard.store.records import NewOperation

log = structlog.get_logger(__name__)


class OrderedIntake:
    """Records operations and puts them in line, each in its place among all that are recorded."""

    def __init__(
        self,
        store: Store,
        event_log: EventLog,
        *,
        positions: Positions,
        wake: Callable[[Iterable[str]], None],
    ) -> None:
        """Call `wake` with jobs that have new operations."""
        self._store = store
        self._event_log = event_log
        self._positions = positions
        self._wake = wake

    async def take(self, wanted: Sequence[NewOperation], hashes: Mapping[str, set[str]]) -> None:
        """Record operations; `hashes` are all payload hashes that came with each id.

        Raises `StoreUnavailableError`.
        """
        ids = [one.operation_id for one in wanted]
        jobs = sorted({one.job_id for one in wanted if one.job_id and not one.rejection})
        known, unpublished, _ = await together(
            self._store.operation_queries.known(ids),
            self._store.operation_queries.unpublished(jobs),
            self._store.jobs.ensure(jobs),
        )
        mismatched = set[str]()
        for one in wanted:
            key = one.operation_id
            kept = known[key].payload_hash if key in known else one.payload_hash
            for dropped in sorted(hashes[key] - {kept}):
                log.warning("intake.payload_mismatch", operation_id=key)
                await self._store.audit.payload_mismatch(key, kept, dropped)
                mismatched.add(key)
        order = in_order({one.operation_id: one.job_id for one in wanted}, known, unpublished)
        places = dict(zip(order, await self._positions.take(len(order)), strict=True))
        await self._store.operations.put_in_line(
            (one, places[one.operation_id])
            for one in unpublished
            if one.operation_id in places and one.operation_id not in ids
        )
        await self._store.operations.take_in(
            [(one, places[one.operation_id]) for one in wanted if one.operation_id in places]
        )
        if mismatched:
            await self._store.operations.mark_payload_mismatch(mismatched)
        self._wake(jobs)
        # The event is published again on redelivery: a crash may have lost the first one.
        self._event_log.note(
            operation_event(one.queued()) for one in wanted if _is_as_taken_in(one, known)
        )


def _is_as_taken_in(one: NewOperation, known: Mapping[str, KnownOperation]) -> bool:
    """Tell whether an operation is now as this message asks: it is new, or nothing came since."""
    there = known.get(one.operation_id)
    state = OperationState.REJECTED if one.rejection else OperationState.QUEUED
    return there is None or (there.state, there.payload_hash) == (state, one.payload_hash)
