"""Cancelling: the gateway records a cancel request, then notifies the dispatcher of it."""

from collections.abc import Sequence

import structlog

from gateway.availability import Availability
from gateway.reading import BoundedReads
from modelyard.broker import Broker
from modelyard.contract.errors import BrokerUnavailableError
from modelyard.contract.message_types import CANCEL_TYPE
from modelyard.contract.messages import MAX_BATCH, CancelNotice
from modelyard.contract.topology import JOBS, SUBMIT_KEY
from modelyard.process.batching import Coalescer, StoppedError
from modelyard.store import Store
from modelyard.store.records import OperationRecord

log = structlog.get_logger(__name__)

NOTIFY_S = 1.0
"""How long a client waits for the notification to be sent; the request is recorded before."""


class CancelRequests:
    """Records cancel requests and notifies the dispatcher of them."""

    def __init__(
        self, store: Store, reading: BoundedReads, broker: Broker, broker_up: Availability
    ) -> None:
        self._store = store
        self._reading = reading
        self._broker = broker
        self._broker_up = broker_up
        self._notifications: Coalescer[str, None] = Coalescer(self._publish, max_items=MAX_BATCH)

    async def run(self) -> None:
        """Publish notifications until cancelled."""
        await self._notifications.run()

    async def request(self, operation_id: str) -> OperationRecord | None:
        """Record that an operation is to be cancelled; return its new record, null if unknown.

        An operation that has ended is returned unchanged. Raises `StoreUnavailableError`; the
        request may be recorded nevertheless, and repeating it is harmless.
        """
        record = await self._reading.ask(
            lambda: self._store.operations.request_cancel(operation_id)
        )
        if record is None or record.deleted:
            return None
        if not record.state.terminal:
            await self._notify_dispatcher(operation_id)
        return record

    async def _notify_dispatcher(self, operation_id: str) -> None:
        """Notify the dispatcher at once; if that fails, its sweep finds the recorded request."""
        try:
            await self._broker_up.ask(
                lambda: self._notifications.submit(operation_id), within_s=NOTIFY_S
            )
        except (BrokerUnavailableError, StoppedError) as error:
            log.info("cancel.not_told", operation_id=operation_id, error=str(error))

    async def _publish(self, operation_ids: Sequence[str]) -> list[None]:
        message = CancelNotice(operation_ids=tuple(dict.fromkeys(operation_ids)))
        await self._broker.publish(
            JOBS,
            SUBMIT_KEY,
            message.model_dump_json().encode(),
            message_type=CANCEL_TYPE,
            mandatory=False,
            persistent=False,
            timeout_s=NOTIFY_S,
        )
        return [None] * len(operation_ids)
