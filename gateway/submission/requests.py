"""Parses a body into requests: pure functions, for the gateway and for its body process."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from gateway.problems import FaultyRequestError, faults_of
from gateway.submission.acceptor import PendingRequest
from modelyard.contract.answers import Fault
from modelyard.contract.errors import ErrorCode, InvalidRequestError, ModelyardError
from modelyard.contract.messages import MAX_BATCH, InferenceRequest, JobRequest
from modelyard.contract.states import Verb
from modelyard.contract.strict_json import JsonValue, parse_json
from modelyard.contract.validation import size_errors, unknown_names
from modelyard.store.queries.serving_jobs import Copies

_LIST_NAME = "requests"
_MAX_JOB_ID_CHARS = 128

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class RefusedRequest:
    """A request of a batch that is refused, and the job that it names, if any."""

    error: ModelyardError
    job_id: str | None


def read_one(body: bytes, *, key: str | None, tenant: str, max_bytes: int) -> PendingRequest:
    """Return the one request in a body; raises `InvalidRequestError`."""
    request = validated(JobRequest, parse_json(body, max_bytes=max_bytes))
    return PendingRequest.of(request, key, tenant=tenant)


def read_inference(
    body: bytes, copies: Copies, job_id: str, *, key: str | None, tenant: str, max_bytes: int
) -> PendingRequest:
    """Return the inference in a body, on a job that was chosen; raises `InvalidRequestError`.

    It names its model and dataset: should the job be another one's by then, it is REJECTED.
    """
    asked = validated(InferenceRequest, parse_json(body, max_bytes=max_bytes))
    request = JobRequest(
        job_id=job_id,
        operation_type=Verb.INFER,
        model=copies.model,
        dataset=copies.dataset,
        **{name: getattr(asked, name) for name in asked.model_fields_set},
    )
    return PendingRequest.of(request, key, tenant=tenant)


def read_batch(
    body: bytes, *, key: str | None, tenant: str, max_bytes: int, max_request_bytes: int
) -> list[PendingRequest | RefusedRequest]:
    """Return the requests of a batch in order; raises `InvalidRequestError` if it is no batch.

    With a key, the request at `index` has the key `KEY/index`.
    """
    values, under = _list_of(parse_json(body, max_bytes=max_bytes))
    pending: list[PendingRequest | RefusedRequest] = []
    for index, value in enumerate(values):
        pointer, item_key = f"{under}/{index}", f"{key}/{index}" if key else None
        try:
            request = validated(JobRequest, value, under=pointer)
            one = PendingRequest.of(request, item_key, under=pointer, tenant=tenant)
            _check_size(one, max_request_bytes)
        except InvalidRequestError as error:
            pending.append(RefusedRequest(error, _job_id_in(value)))
        else:
            pending.append(one)
    return pending


def validated(kind: type[M], value: JsonValue, *, under: str = "") -> M:
    """Return the value as a model; raises `FaultyRequestError` with pointers below `under`."""
    too_large = size_errors(kind, value)
    if too_large:
        raise FaultyRequestError([_fault(one, under) for one in too_large])
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise FaultyRequestError(faults_of(error, under=under)) from error


def _list_of(body: JsonValue) -> tuple[list[JsonValue], str]:
    """Return the requests and the pointer to their list: the body itself, or its `requests`."""
    values, under = body, ""
    if isinstance(body, Mapping):
        unknown = unknown_names(body, (_LIST_NAME,))
        if unknown:
            raise FaultyRequestError([_fault(one, "") for one in unknown])
        values, under = body.get(_LIST_NAME), f"/{_LIST_NAME}"
    if not isinstance(values, list):
        message = 'A batch is a list of requests, bare or as {"requests": [...]}.'
        raise FaultyRequestError([Fault(pointer=under, message=message)])
    if not 1 <= len(values) <= MAX_BATCH:
        message = f"The batch holds {len(values)} requests; it may hold 1 to {MAX_BATCH}."
        raise FaultyRequestError([Fault(pointer=under, message=message)], ErrorCode.BATCH_TOO_LARGE)
    return values, under


def _job_id_in(value: JsonValue) -> str | None:
    named = value.get("job_id") if isinstance(value, Mapping) else None
    return named[:_MAX_JOB_ID_CHARS] if isinstance(named, str) else None


def _check_size(pending: PendingRequest, max_bytes: int) -> None:
    """Refuse a request whose compact JSON is larger than a single request may be."""
    input_json = pending.operation.input_json
    if input_json is None:
        return  # the schema bounds all other fields
    fields = pending.request.model_dump_json(exclude_defaults=True, exclude={"input"})
    if len(fields.encode()) + len(',"input":') + len(input_json.encode()) > max_bytes:
        raise InvalidRequestError(
            ErrorCode.BODY_TOO_LARGE, f"At most {max_bytes} bytes are allowed for one request."
        )


def _fault(found: Mapping[str, str], under: str) -> Fault:
    return Fault(pointer=under + found["pointer"], message=found["message"])
