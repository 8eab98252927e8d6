"""Retries: rebuilds the request of an operation that ended without success.

The client asks for them; retries of failed attempts are the dispatcher's.
"""

import json

from pydantic import ValidationError

from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.messages import JobRequest
from modelyard.contract.states import OperationState
from modelyard.store.records import OperationRecord, request_fields


def request_again(record: OperationRecord) -> JobRequest:
    """Return the request of an operation; `record` includes its input.

    Raises `ModelyardError` with `not_retryable` if the operation is open or has succeeded, or if
    its record is incomplete: of a request that violated the schema only the names were recorded.
    """
    if not record.state.terminal:
        raise _not_retryable(f"The operation is {record.state}.")
    if record.state is OperationState.SUCCEEDED:
        raise _not_retryable("The operation has succeeded.")
    request = _rebuilt(record)
    if request is None or request.payload_hash() != record.payload_hash:
        raise _not_retryable("The request was not recorded completely: submit it as a new one.")
    return request


def _rebuilt(record: OperationRecord) -> JobRequest | None:
    given = None if record.input_json is None else json.loads(record.input_json)
    try:
        return JobRequest.model_validate(request_fields(record) | {"input": given})
    except ValidationError:
        return None


def _not_retryable(message: str) -> ModelyardError:
    return ModelyardError(ErrorCode.NOT_RETRYABLE, message)
