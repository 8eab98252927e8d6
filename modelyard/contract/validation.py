"""Validation of a client's request, the same over HTTP and AMQP; errors point at each fault."""

import itertools
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from modelyard.contract.errors import ErrorCode, InvalidRequestError
from modelyard.contract.messages import MAX_METADATA, JobRequest
from modelyard.contract.strict_json import JsonValue

MAX_LISTED_ERRORS = 20
MAX_POINTER_CHARS = 256
"""Pointers are for people to read, and may contain long names that a client chose."""
MAX_NAMES_OF_A_MESSAGE = 64
"""No message of Modelyard has so many fields. An object with more is not given to pydantic, which
would build an error for each of them."""
MAX_MESSAGE_CHARS = 500
_OUR_PREFIX = "Value error, "
_UNKNOWN_NAME = "is not known"
_MUST_BE_A_LIST = "must be a list"
_MUST_BE_AN_OBJECT = "must be a JSON object"
_WORDS = {
    "extra_forbidden": _UNKNOWN_NAME,
    "tuple_type": _MUST_BE_A_LIST,
    "list_type": _MUST_BE_A_LIST,
    "dict_type": _MUST_BE_AN_OBJECT,
    "mapping_type": _MUST_BE_AN_OBJECT,
    "model_type": _MUST_BE_AN_OBJECT,
    "model_attributes_type": _MUST_BE_AN_OBJECT,
}
"""What is said in place of pydantic's messages with words of Python, by the type of the error."""


def parse_request(value: JsonValue) -> JobRequest:
    """Validate parsed JSON as one request.

    Raises `InvalidRequestError` with `invalid_request`; `detail["errors"]` lists what is wrong as
    `{"pointer": RFC 6901, "message": text}`. They never repeat
    the values that the client sent.
    """
    if not isinstance(value, dict):
        raise InvalidRequestError(
            ErrorCode.INVALID_REQUEST,
            "A request is a JSON object.",
            errors=[{"pointer": "", "message": _MUST_BE_AN_OBJECT}],
        )
    listed = size_errors(JobRequest, value)
    if listed:
        raise _schema_error(listed)
    try:
        return JobRequest.model_validate(value)
    except ValidationError as error:
        raise _schema_error(error_list(error)) from error


def size_errors(kind: type[BaseModel], value: JsonValue) -> list[dict[str, str]]:
    """Return errors if `value` has too many names to be validated as `kind`; else an empty list.

    pydantic builds an error for each unknown name and for each wrong entry of a map, without limit.
    So the names at the top of a message, and those of a request's metadata, are counted first.
    """
    if not isinstance(value, Mapping):
        return []
    if len(value) > MAX_NAMES_OF_A_MESSAGE:
        return unknown_names(value, kind.model_fields.keys())
    metadata = value.get("metadata")
    if kind is JobRequest and isinstance(metadata, Mapping) and len(metadata) > MAX_METADATA:
        message = f"has {len(metadata)} entries; at most {MAX_METADATA} are allowed"
        return [{"pointer": "/metadata", "message": message}]
    return []


def unknown_names(value: Mapping[str, JsonValue], known: Collection[str]) -> list[dict[str, str]]:
    """Return an error for each of the first names in `value` that are not known."""
    unknown = itertools.islice((name for name in value if name not in known), MAX_LISTED_ERRORS)
    return [{"pointer": pointer((name,)), "message": _UNKNOWN_NAME} for name in unknown]


def _schema_error(listed: list[dict[str, str]]) -> InvalidRequestError:
    first = listed[0]
    where = f"`{first['pointer'].lstrip('/')}` " if first["pointer"] else ""
    return InvalidRequestError(
        ErrorCode.INVALID_REQUEST,
        f"The request does not follow its schema: {where}{first['message']}.",
        errors=listed,
    )


def error_list(error: ValidationError) -> list[dict[str, str]]:
    """Return pydantic's findings as JSON pointers and messages, at most 20 of them.

    pydantic builds the whole list, so callers limit the input first (`size_errors`).
    """
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [
        {"pointer": pointer(one["loc"]), "message": message_of(one)}
        for one in found[:MAX_LISTED_ERRORS]
    ]


def first_errors(error: ValidationError) -> str:
    """Return pydantic's first findings in one line of at most 900 characters."""
    return "; ".join(f"{one['pointer']}: {one['message']}" for one in error_list(error)[:3])[:900]


def pointer(location: tuple[int | str, ...]) -> str:
    """Return an RFC 6901 JSON pointer to a place in a document.

    pydantic's mark for "the key itself is wrong" is left out: it is not part of the path.
    """
    places = (str(step) for step in location if step != "[key]")
    steps = (place.replace("~", "~0").replace("/", "~1") for place in places)
    return "".join(f"/{step}" for step in steps)[:MAX_POINTER_CHARS]


def message_of(found: Mapping[str, Any]) -> str:
    """Return one of pydantic's findings in words for people."""
    if found["type"] in _WORDS:
        return _WORDS[found["type"]]
    text = str(found["msg"])
    our_message = text.removeprefix(_OUR_PREFIX)
    message = our_message if our_message != text else text[:1].lower() + text[1:]
    return message[:MAX_MESSAGE_CHARS]
