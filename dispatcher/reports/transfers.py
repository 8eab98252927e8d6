"""Takes pieces of large results, and gives those of large inputs, for attempts that are current.

A worker has no access to MongoDB. What the record says of the operation decides: the attempt has to
be its current one, on the host that asks. Each piece may be taken or given again.
"""

import structlog

from dispatcher.control import ControlPublisher
from modelyard.contract.content.transfers import TransferAnswer, WorkerTransfer
from modelyard.contract.messages import CancelOperation
from modelyard.process.crash_points import crash_point
from modelyard.store import Store
from modelyard.store.operation_writes import ACTIVE_ON_HOST_STATES
from modelyard.store.records import OperationRecord

log = structlog.get_logger(__name__)


class Transfers:
    """Answers the messages of workers about large content."""

    def __init__(self, store: Store, control: ControlPublisher) -> None:
        self._store = store
        self._control = control

    async def answer(self, message: WorkerTransfer) -> None:
        """Store or read one piece and tell the worker; raises `StoreUnavailableError`.

        An attempt that is not current is told to stop.
        """
        operation = await self._store.operation_queries.get(message.operation_id)
        if operation is None or not _is_current(message, operation):
            log.info(
                "transfer.stale",
                host_id=message.host_id,
                operation_id=message.operation_id,
                epoch=message.epoch,
            )
            stale = CancelOperation(
                operation_id=message.operation_id, epoch=message.epoch, reason="stale"
            )
            await self._control.send(message.host_id, message.incarnation, cancels=[stale])
            return
        if message.result is not None:
            await self._store.results.put_piece(
                message.operation_id, message.epoch, message.number, message.result.content
            )
            crash_point("dispatcher.transfers.after_piece")
        answer = (
            _answer(message, stored=True)
            if message.result is not None
            else await self._piece_of_input(message, operation)
        )
        await self._control.send(message.host_id, message.incarnation, transfers=[answer])

    async def _piece_of_input(
        self, message: WorkerTransfer, operation: OperationRecord
    ) -> TransferAnswer:
        gone = _answer(message, stored=False)
        if operation.input_id is None:
            return gone
        stored = await self._store.inputs.find(operation.input_id, tenant=operation.tenant)
        content = await self._store.inputs.piece(operation.input_id, message.number)
        if stored is None or content is None:
            return gone
        return gone.model_copy(
            update={
                "content_type": stored.content_type,
                "size": stored.length,
                "content": content,
            }
        )


def _is_current(message: WorkerTransfer, operation: OperationRecord) -> bool:
    return operation.state in ACTIVE_ON_HOST_STATES and (
        operation.host_id,
        operation.incarnation,
        operation.job_id,
        operation.epoch,
    ) == (message.host_id, message.incarnation, message.job_id, message.epoch)


def _answer(message: WorkerTransfer, *, stored: bool) -> TransferAnswer:
    return TransferAnswer(
        operation_id=message.operation_id,
        epoch=message.epoch,
        number=message.number,
        stored=stored,
    )
