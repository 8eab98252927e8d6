"""How the body process returns the requests that it has read: short fields, and inputs as text.

The gateway does not parse an input again: it stays JSON text in the message, in the record and in
the command, all the way to the worker.
"""

from pydantic import BaseModel

from gateway.problems import FaultyRequestError
from gateway.submission.acceptor import PendingRequest
from gateway.submission.requests import RefusedRequest
from modelyard.contract.answers import Fault
from modelyard.contract.errors import ErrorCode, InvalidRequestError, ModelyardError
from modelyard.contract.messages import JobRequest
from modelyard.process.body_child import Part
from modelyard.store.records import NewOperation, request_fields


class RequestTransfer(BaseModel):
    """One request of a body, its error, or the error of the whole body (then `whole` is true)."""

    operation: NewOperation | None = None
    has_input: bool = False
    under: str = ""
    keyed: bool = False
    code: ErrorCode | None = None
    message: str = ""
    faults: tuple[Fault, ...] = ()
    job_id: str | None = None
    whole: bool = False


def pack_asked(pending: PendingRequest) -> Part:
    """Return a request in transfer form; its input goes beside it."""
    input_json = pending.operation.input_json
    transfer = RequestTransfer(
        operation=pending.operation.model_copy(update={"input_json": None}),
        has_input=input_json is not None,
        under=pending.under,
        keyed=pending.keyed,
    )
    return _packed(transfer), (input_json or "").encode()


def pack_refused(refused: RefusedRequest) -> Part:
    """Return a refused request of a batch in transfer form."""
    return _packed(_error(refused.error).model_copy(update={"job_id": refused.job_id})), b""


def pack_error(error: ModelyardError) -> Part:
    """Return the error of a whole body in transfer form."""
    return _packed(_error(error).model_copy(update={"whole": True})), b""


def unpack(part: Part) -> PendingRequest | RefusedRequest:
    """Return the request or refusal that was packed; raise the error of a whole body."""
    transfer = RequestTransfer.model_validate_json(part[0])
    if transfer.operation is None:
        error = _unpacked_error(transfer)
        if transfer.whole:
            raise error
        return RefusedRequest(error, transfer.job_id)
    operation = transfer.operation
    if transfer.has_input:
        operation = operation.model_copy(update={"input_json": part[1].decode()})
    return PendingRequest(operation, _request_of(operation), transfer.under, transfer.keyed)


def _request_of(operation: NewOperation) -> JobRequest:
    """Return the request without its input. The body process has validated it already."""
    if operation.job_id is None or operation.verb is None:
        raise ValueError("a valid request names a job and a verb")
    return JobRequest.model_construct(**request_fields(operation))


def _error(error: ModelyardError) -> RequestTransfer:
    faults = error.faults if isinstance(error, FaultyRequestError) else ()
    return RequestTransfer(code=error.code, message=error.message, faults=faults)


def _unpacked_error(transfer: RequestTransfer) -> InvalidRequestError:
    code = transfer.code or ErrorCode.INTERNAL
    if transfer.faults:
        return FaultyRequestError(transfer.faults, code)
    return InvalidRequestError(code, transfer.message)


def _packed(transfer: RequestTransfer) -> bytes:
    return transfer.model_dump_json(exclude_defaults=True).encode()
