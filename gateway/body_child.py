"""`python -m gateway.body_child`: the child process that parses a gateway's large bodies.

Parsing a large body takes long enough to stall the event loop, so another process does it.
"""

from collections.abc import Iterator

from gateway.submission import requests
from gateway.submission.acceptor import PendingRequest
from gateway.submission.request_transfer import pack_asked, pack_error, pack_refused
from gateway.submission.retries import request_again
from modelyard.contract.errors import InvalidRequestError, ModelyardError
from modelyard.contract.strict_json import JsonValue
from modelyard.process.body_child import Part, serve
from modelyard.store.queries.serving_jobs import Copies
from modelyard.store.records import OperationRecord


def one(body: bytes, *, key: str | None, tenant: str, max_bytes: int) -> Iterator[Part]:
    """Yield the one request in a body."""
    try:
        yield pack_asked(requests.read_one(body, key=key, tenant=tenant, max_bytes=max_bytes))
    except InvalidRequestError as error:
        yield pack_error(error)


def inference(
    body: bytes,
    *,
    copies: dict[str, str],
    job_id: str,
    key: str | None,
    tenant: str,
    max_bytes: int,
) -> Iterator[Part]:
    """Yield the inference in a body, on a job that was chosen."""
    of = Copies(**copies)
    try:
        yield pack_asked(
            requests.read_inference(body, of, job_id, key=key, tenant=tenant, max_bytes=max_bytes)
        )
    except InvalidRequestError as error:
        yield pack_error(error)


def batch(
    body: bytes, *, key: str | None, tenant: str, max_bytes: int, max_request_bytes: int
) -> Iterator[Part]:
    """Yield the requests in the body of a batch."""
    try:
        read = requests.read_batch(
            body,
            key=key,
            tenant=tenant,
            max_bytes=max_bytes,
            max_request_bytes=max_request_bytes,
        )
    except InvalidRequestError as error:
        yield pack_error(error)
        return
    for each in read:
        yield pack_asked(each) if isinstance(each, PendingRequest) else pack_refused(each)


def again(
    body: bytes, *, key: str | None, tenant: str, record: dict[str, JsonValue]
) -> Iterator[Part]:
    """Yield the request of a recorded operation again; the body is the operation's input."""
    before = OperationRecord.model_validate(record | {"input_json": body.decode()})
    try:
        pending = PendingRequest.of(
            request_again(before), key, retry_of=before.operation_id, tenant=tenant
        )
        yield pack_asked(pending)
    except ModelyardError as error:
        yield pack_error(error)


if __name__ == "__main__":
    serve({"one": one, "inference": inference, "batch": batch, "again": again})
