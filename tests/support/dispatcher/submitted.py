"""Requests in the form in which a gateway publishes them."""

from datetime import timedelta

from modelyard.contract.messages import JobRequest, SubmittedRequest
from modelyard.store.records import EPOCH, NewOperation


def submitted_request(operation: NewOperation, request: JobRequest) -> SubmittedRequest:
    """Return the request of an operation as its gateway publishes it."""
    at, number = operation.accepted or (None, 0)
    return SubmittedRequest(
        operation_id=operation.operation_id,
        request=request,
        retry_of=operation.retry_of,
        accepted_ms=None if at is None else (at - EPOCH) // timedelta(milliseconds=1),
        accepted_number=number,
    )
