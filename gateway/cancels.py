"""Cancelling: the wish goes into the record, and the dispatcher is told that it is there."""

from collections.abc import Sequence

import structlog

from gateway.availability import Availability
from gateway.reading import BoundedReads
from modelyard.broker import Broker
from modelyard.contract.errors import BrokerUnavailableError
from modelyard.contract.message_types import CANCEL_TYPE
from modelyard.contract.messages import MAX_BATCH, CancelWish
from modelyard.contract.topology import JOBS, SUBMIT_KEY
from modelyard.process.batching import Coalescer, StoppedError
from modelyard.store import Store
from modelyard.store.records import OperationRecord

log = structlog.get_logger(__name__)

POKE_S = 1.0
"""How long a client waits for the dispatcher to be told; the wish is recorded by then."""


class CancelRequests:
    """Takes wishes to cancel in."""

    def __init__(
        self, store: Store, reading: BoundedReads, broker: Broker, broker_up: Availability
    ) -> None:
        self._store = store
        self._reading = reading
        self._broker = broker
        self._broker_up = broker_up
        self._pokes: Coalescer[str, None] = Coalescer(self._publish, max_items=MAX_BATCH)

    async def run(self) -> None:
        """Publish until cancelled."""
        await self._pokes.run()

    async def request(self, operation_id: str) -> OperationRecord | None:
        """Record the wish to cancel an operation and return it as it is after; null if unknown.

        One that has ended is returned unchanged. Raises `StoreUnavailableError`; the wish may be
        recorded all the same, and repeating it is harmless.
        """
        record = await self._reading.ask(
            lambda: self._store.operations.request_cancel(operation_id)
        )
        if record is not None and not record.state.terminal:
            await self._poke(operation_id)
        return record

    async def _poke(self, operation_id: str) -> None:
        """Tell the dispatcher at once; where that fails, its sweep finds the wish."""
        try:
            await self._broker_up.ask(lambda: self._pokes.submit(operation_id), within_s=POKE_S)
        except (BrokerUnavailableError, StoppedError) as error:
            log.info("cancel.not_told", operation_id=operation_id, error=str(error))

    async def _publish(self, operation_ids: Sequence[str]) -> list[None]:
        wish = CancelWish(operation_ids=tuple(dict.fromkeys(operation_ids)))
        await self._broker.publish(
            JOBS,
            SUBMIT_KEY,
            wish.model_dump_json().encode(),
            message_type=CANCEL_TYPE,
            mandatory=False,
            persistent=False,
            timeout_s=POKE_S,
        )
        return [None] * len(operation_ids)
