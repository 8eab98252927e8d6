"""Decodes a message of the jobs queue into the operations that it requests; pure functions."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TypedDict, Unpack

from pydantic import ValidationError

from dispatcher.intake.content import check_content, unpacked
from modelyard.broker import Delivery
from modelyard.contract.errors import ErrorCode, ErrorInfo, InvalidRequestError
from modelyard.contract.ids import DEFAULT_TENANT, ID_PATTERN, operation_id_for_key
from modelyard.contract.message_types import SUBMISSION_TYPE
from modelyard.contract.messages import (
    MAX_BATCH,
    MAX_BATCH_BYTES,
    MAX_PRIORITY,
    MAX_REQUEST_BYTES,
    JobRequest,
    Submission,
    SubmittedRequest,
)
from modelyard.contract.states import Verb
from modelyard.contract.strict_json import JsonValue, canonical_json, parse_json
from modelyard.contract.topology import REPLAY_HEADER
from modelyard.contract.validation import error_list, parse_request, size_errors
from modelyard.store.records import EPOCH, NewOperation, Source

IDEMPOTENCY_HEADER = "idempotency-key"
REPLAY_TENANT = "~replays"
"""The tenant of replayed dead letters. No client's tenant can have this name, so no client can
choose an idempotency key that takes the operation id of a replay beforehand."""

_ID = re.compile(ID_PATTERN)


@dataclass(frozen=True, slots=True)
class UnreadableMessage:
    """A message in which no request can be found; it becomes a dead letter."""

    error: ErrorInfo


def idempotency_key(headers: Mapping[str, object], message_id: str | None) -> str | None:
    """Return the key in a message's header `Idempotency-Key` (in any case), else its `message_id`.

    The header is for tools that can't set the property, such as `amqp-publish`.
    """
    for name, value in headers.items():
        if name.lower() == IDEMPOTENCY_HEADER and isinstance(value, str | bytes) and value:
            return value if isinstance(value, str) else value.decode(errors="replace")
    return message_id


def replay_key(headers: Mapping[str, object]) -> str | None:
    """Return the key of a replay if the message replays a dead letter, else null."""
    value = headers.get(REPLAY_HEADER)
    return value if isinstance(value, str) and value else None


def decode_delivery(
    delivery: Delivery, *, fallback_key: str | None = None, trusted: bool
) -> list[NewOperation] | UnreadableMessage:
    """Return the operations that a message of the jobs queue requests.

    `fallback_key` is used if the message has no idempotency key; if it is null as well, the
    delivery gets a key of its own.

    `trusted` is true if a gateway or a dispatcher sent the message. From any other sender, the
    message type and Modelyard's own headers are ignored: the body is read as a client's request.
    """
    arguments = decode_arguments(delivery, fallback_key=fallback_key, trusted=trusted)
    return decode_packed(delivery.body, delivery.properties.content_encoding, **arguments)


def refused_content(delivery: Delivery) -> UnreadableMessage | None:
    """Return why a message can't be read if it says that its body is not JSON; else null."""
    properties = delivery.properties
    try:
        check_content(properties.content_type, properties.content_encoding)
    except InvalidRequestError as error:
        return UnreadableMessage(error.info())
    return None


class DecodeArguments(TypedDict):
    """The arguments of `decode` beside the body. All are JSON, to go to another process."""

    message_type: str | None
    key: str
    replay: str | None
    priority: int


def decode_arguments(
    delivery: Delivery, *, fallback_key: str | None, trusted: bool
) -> DecodeArguments:
    """Return the arguments of `decode` for a delivery."""
    own = idempotency_key(delivery.headers, delivery.message_id)
    return DecodeArguments(
        message_type=delivery.type if trusted else None,
        key=own or fallback_key or delivery.fallback_key,
        replay=replay_key(delivery.headers) if trusted else None,
        priority=min(delivery.priority, MAX_PRIORITY),
    )


def decode_packed(
    body: bytes, content_encoding: str | None, **arguments: Unpack[DecodeArguments]
) -> list[NewOperation] | UnreadableMessage:
    """Unpack a body and decode it."""
    try:
        plain = unpacked(body, content_encoding)
    except InvalidRequestError as error:
        return UnreadableMessage(error.info())
    return decode(plain, **arguments)


def decode(
    body: bytes,
    *,
    message_type: str | None,
    key: str,
    replay: str | None = None,
    priority: int = 0,
) -> list[NewOperation] | UnreadableMessage:
    """Return the operations that a message requests, in the order of its requests.

    An invalid request becomes an operation too, with a `rejection`. The operation ids derive from
    `key`: with the publisher's own key they are the same on every redelivery. With `replay` the
    ids are new ones, because the first operations have ended.

    `priority` is the message's own: that of each client's request that names none.
    """
    try:
        if message_type == SUBMISSION_TYPE:
            operations = _from_gateway(body)
            if replay is None:
                return operations
            return [_replayed(one, replay) for one in operations]
        if replay is not None:
            return _from_client(body, replay, tenant=REPLAY_TENANT, priority=priority)
        return _from_client(body, key, tenant=DEFAULT_TENANT, priority=priority)
    except InvalidRequestError as error:
        return UnreadableMessage(error.info())


def _from_gateway(body: bytes) -> list[NewOperation]:
    value = parse_json(body, max_bytes=MAX_BATCH_BYTES)
    _check_sizes(value)
    try:
        submission = Submission.model_validate(value)
    except ValidationError as error:
        raise InvalidRequestError(
            ErrorCode.INVALID_REQUEST,
            "Its type says that it is a submission, but its body is not.",
            errors=error_list(error),
        ) from error
    return [_submitted(one) for one in submission.requests]


def _submitted(one: SubmittedRequest) -> NewOperation:
    operation = _from_request(
        one.operation_id, one.request, "http", retry_of=one.retry_of, tenant=one.tenant
    )
    if one.accepted_ms is None:
        return operation
    at = EPOCH + timedelta(milliseconds=one.accepted_ms)
    return operation.model_copy(update={"accepted": (at, one.accepted_number)})


def _check_sizes(value: JsonValue) -> None:
    """Refuse a submission with a request that is too large to validate."""
    requests = value.get("requests") if isinstance(value, dict) else None
    for one in requests if isinstance(requests, list) else []:
        errors = size_errors(JobRequest, one.get("request")) if isinstance(one, dict) else []
        if errors:
            raise InvalidRequestError(
                ErrorCode.INVALID_REQUEST,
                "Its type says that it is a submission, but its body is not.",
                errors=errors,
            )


def _replayed(operation: NewOperation, replay: str) -> NewOperation:
    first = operation.operation_id
    key = operation_id_for_key(f"{replay}/{first}", tenant=REPLAY_TENANT)
    update = {"operation_id": key, "retry_of": first, "accepted": None}
    return operation.model_copy(update=update)


def _from_client(body: bytes, key: str, *, tenant: str, priority: int) -> list[NewOperation]:
    value = parse_json(body, max_bytes=MAX_BATCH_BYTES)
    if not isinstance(value, list):
        if len(body) > MAX_REQUEST_BYTES:
            raise InvalidRequestError(
                ErrorCode.BODY_TOO_LARGE,
                f"The request has {len(body)} bytes; at most {MAX_REQUEST_BYTES} are allowed.",
            )
        return [_operation(value, operation_id_for_key(key, tenant=tenant), priority)]
    if not value:
        raise InvalidRequestError(ErrorCode.INVALID_REQUEST, "The list holds no request.")
    if len(value) > MAX_BATCH:
        raise InvalidRequestError(
            ErrorCode.BATCH_TOO_LARGE,
            f"The list holds {len(value)} requests; it may hold 1 to {MAX_BATCH}.",
        )
    return [
        _operation(item, operation_id_for_key(f"{key}/{index}", tenant=tenant), priority)
        for index, item in enumerate(value)
    ]


def _operation(value: JsonValue, operation_id: str, priority: int) -> NewOperation:
    try:
        request = parse_request(value)
        if "priority" not in request.model_fields_set:
            # Before the payload's hash is taken: with another priority it is another request.
            request = request.model_copy(update={"priority": priority})
        return _from_request(operation_id, request, "amqp")
    except InvalidRequestError as error:
        return _rejected(value, operation_id, error)


def _from_request(
    operation_id: str,
    request: JobRequest,
    source: Source,
    *,
    retry_of: str | None = None,
    tenant: str = DEFAULT_TENANT,
) -> NewOperation:
    try:
        return NewOperation.of(operation_id, request, source, retry_of=retry_of, tenant=tenant)
    except InvalidRequestError as error:
        return NewOperation(
            operation_id=operation_id,
            job_id=request.job_id,
            verb=request.operation_type,
            source=source,
            payload_hash=request.payload_hash(),
            tenant=tenant,
            rejection=error.info(),
        )


def _rejected(value: JsonValue, operation_id: str, error: InvalidRequestError) -> NewOperation:
    fields = value if isinstance(value, dict) else {}
    job_id, verb = fields.get("job_id"), fields.get("operation_type")
    return NewOperation(
        operation_id=operation_id,
        job_id=job_id if isinstance(job_id, str) and _ID.fullmatch(job_id) else None,
        verb=Verb(verb) if isinstance(verb, str) and verb in Verb.__members__ else None,
        source="amqp",
        payload_hash=hashlib.sha256(canonical_json(value).encode()).hexdigest(),
        rejection=error.info(),
    )
