"""Decodes the messages of the reports' queue; unreadable ones become dead letters."""

from dataclasses import replace
from enum import Enum

from pydantic import ValidationError

from dispatcher.senders import Senders
from modelyard.broker import DETAIL_HEADER, REASON_HEADER, Broker, Delivery, send_to_dead_letters
from modelyard.contract.content.transfers import WorkerTransfer
from modelyard.contract.errors import ErrorCode, ErrorInfo, InvalidRequestError
from modelyard.contract.ids import Id, Incarnation
from modelyard.contract.json_bounds import REPORT_LIMITS, check_bounds
from modelyard.contract.message_types import (
    OVERDUE_REPORTS_TYPE,
    TRANSFER_TYPE,
    UNREADABLE_TYPE,
)
from modelyard.contract.messages import (
    MAX_REPORT_BYTES,
    Count,
    HostOnline,
    Inventory,
    Message,
    OperationReport,
    WorkerReports,
)
from modelyard.contract.strict_json import JsonValue
from modelyard.contract.topology import REPORTS_QUEUE, host_queue
from modelyard.contract.validation import first_errors


class Prompt(Enum):
    """A request that a dispatcher sends to itself through the reports' queue."""

    OVERDUE = "overdue"


class ReportEnvelope(Message):
    """A message of reports, each of which is validated separately."""

    host_id: Id
    incarnation: Incarnation
    number: Count = 0
    online: HostOnline | None = None
    operations: tuple[JsonValue, ...] = ()
    inventory: Inventory | None = None


async def read_reports(
    broker: Broker, senders: Senders, delivery: Delivery
) -> WorkerReports | WorkerTransfer | Prompt | None:
    """Return the valid reports of a message, or a piece of large content; dead-letter invalid ones.

    If the sender may not report on the host, the whole message becomes a dead letter with
    `forbidden`. Raises `BrokerUnavailableError` if a dead letter was not confirmed.
    """
    if delivery.type == OVERDUE_REPORTS_TYPE and senders.is_dispatcher(delivery.user_id):
        return Prompt.OVERDUE
    refusal = _refusal(senders, delivery)
    if refusal is not None:
        await send_to_dead_letters(broker, delivery, refusal, queue=REPORTS_QUEUE.name)
        return None
    if delivery.type == UNREADABLE_TYPE:
        queue = host_queue(delivery.routing_key).name
        await send_to_dead_letters(broker, delivery, _worker_reason(delivery), queue=queue)
        return None
    if delivery.type == TRANSFER_TYPE:
        return await _read_transfer(broker, delivery)
    return await _read_reports(broker, delivery)


async def _read_reports(broker: Broker, delivery: Delivery) -> WorkerReports | None:
    try:
        envelope = ReportEnvelope.model_validate_json(delivery.body)
    except ValidationError as error:
        await _reject(broker, delivery, first_errors(error))
        return None
    if envelope.host_id != delivery.routing_key:
        mismatch = f"{envelope.host_id} sent it with the routing key {delivery.routing_key!r}."
        await _reject(broker, delivery, mismatch)
        return None
    reports: list[OperationReport] = []
    unreadable: list[JsonValue] = []
    last_error: ValidationError | None = None
    for raw in envelope.operations:
        try:
            reports.append(OperationReport.model_validate(raw))
        except ValidationError as error:
            last_error = error
            unreadable.append(raw)
    if last_error is not None:
        # Only the unreadable reports: operations in a dead letter fail, the others are recorded.
        rest = envelope.model_copy(
            update={"operations": tuple(unreadable), "online": None, "inventory": None}
        )
        letter = replace(delivery, body=rest.model_dump_json().encode())
        await _reject(broker, letter, first_errors(last_error))
    return WorkerReports(
        host_id=envelope.host_id,
        incarnation=envelope.incarnation,
        number=envelope.number,
        online=envelope.online,
        operations=tuple(reports),
        inventory=envelope.inventory,
    )


async def _read_transfer(broker: Broker, delivery: Delivery) -> WorkerTransfer | None:
    try:
        transfer = WorkerTransfer.model_validate_json(delivery.body)
    except ValidationError as error:
        await _reject(broker, delivery, first_errors(error))
        return None
    if transfer.host_id != delivery.routing_key:
        mismatch = f"{transfer.host_id} sent it with the routing key {delivery.routing_key!r}."
        await _reject(broker, delivery, mismatch)
        return None
    return transfer


def _refusal(senders: Senders, delivery: Delivery) -> ErrorInfo | None:
    """Return why a message is refused unread: its sender may not send it, or it is too large."""
    if not senders.may_speak_for(delivery.user_id, delivery.routing_key):
        sender = delivery.user_id or "a sender without a verified user"
        message = f"{sender} may not report on {delivery.routing_key!r}."
        return ErrorInfo(code=ErrorCode.FORBIDDEN, message=message[:500])
    if delivery.type == UNREADABLE_TYPE:
        return None
    if delivery.cut or len(delivery.body) > MAX_REPORT_BYTES:
        return _not_a_report(f"it has {delivery.size} bytes; at most {MAX_REPORT_BYTES} allowed.")
    try:
        check_bounds(delivery.body, REPORT_LIMITS)
    except InvalidRequestError as error:
        return _not_a_report(error.message)
    return None


def _worker_reason(delivery: Delivery) -> ErrorInfo:
    """Return the worker's reason why it could not read a command."""
    code = str(delivery.headers.get(REASON_HEADER))
    known = code in ErrorCode.__members__.values()
    detail = str(delivery.headers.get(DETAIL_HEADER) or "The worker gave no reason.")
    return ErrorInfo(code=ErrorCode(code) if known else ErrorCode.INVALID_REQUEST, message=detail)


async def _reject(broker: Broker, delivery: Delivery, reason: str) -> None:
    await send_to_dead_letters(broker, delivery, _not_a_report(reason), queue=REPORTS_QUEUE.name)


def _not_a_report(reason: str) -> ErrorInfo:
    return ErrorInfo(code=ErrorCode.INVALID_REQUEST, message=f"Not a report: {reason}")
