"""Reading a client's request, with errors that point at what is wrong: the same by both doors."""

import itertools
from collections.abc import Collection, Mapping

from pydantic import BaseModel, ValidationError

from modelyard.contract.errors import ErrorCode, InvalidRequestError
from modelyard.contract.messages import MAX_METADATA, JobRequest
from modelyard.contract.strict_json import JsonValue

MAX_LISTED_ERRORS = 20
MAX_POINTER_CHARS = 256
"""A name that a client chose is part of a pointer; a pointer is for people."""
MAX_NAMES_OF_A_MESSAGE = 64
"""No message of ours has so many fields. What has more is not given to pydantic at all, which would
make an error for each of them."""
MAX_MESSAGE_CHARS = 500
_UNKNOWN_NAME = "Extra inputs are not permitted"
_OUR_PREFIX = "Value error, "


def parse_request(value: JsonValue) -> JobRequest:
    """Validate parsed JSON as one request.

    Raises `InvalidRequestError` with `invalid_request`; `detail["errors"]` lists what is wrong as
    `{"pointer": RFC 6901, "message": text}`. What the client sent is never repeated in it.
    """
    if not isinstance(value, dict):
        raise InvalidRequestError(
            ErrorCode.INVALID_REQUEST,
            "A request is a JSON object.",
            errors=[{"pointer": "", "message": "must be an object"}],
        )
    listed = size_errors(JobRequest, value)
    if listed:
        raise _does_not_follow(listed)
    try:
        return JobRequest.model_validate(value)
    except ValidationError as error:
        raise _does_not_follow(error_list(error)) from error


def size_errors(kind: type[BaseModel], value: JsonValue) -> list[dict[str, str]]:
    """Return what is too much in `value` to be validated as `kind`; nothing if it may be.

    pydantic makes an error for each unknown name and for each wrong entry of a map, without end.
    So the names at the top of a message, and those of a request's metadata, are counted before.
    """
    if not isinstance(value, Mapping):
        return []
    if len(value) > MAX_NAMES_OF_A_MESSAGE:
        return unknown_names(value, kind.model_fields.keys())
    metadata = value.get("metadata")
    if kind is JobRequest and isinstance(metadata, Mapping) and len(metadata) > MAX_METADATA:
        message = f"has {len(metadata)} entries; at most {MAX_METADATA} are taken"
        return [{"pointer": "/metadata", "message": message}]
    return []


def unknown_names(value: Mapping[str, JsonValue], known: Collection[str]) -> list[dict[str, str]]:
    """Return an error for each of the first names in `value` that are not known."""
    unknown = itertools.islice((name for name in value if name not in known), MAX_LISTED_ERRORS)
    return [{"pointer": pointer((name,)), "message": _message(_UNKNOWN_NAME)} for name in unknown]


def _does_not_follow(listed: list[dict[str, str]]) -> InvalidRequestError:
    first = listed[0]
    where = f"`{first['pointer'].lstrip('/')}` " if first["pointer"] else ""
    return InvalidRequestError(
        ErrorCode.INVALID_REQUEST,
        f"The request does not follow its schema: {where}{first['message']}.",
        errors=listed,
    )


def error_list(error: ValidationError) -> list[dict[str, str]]:
    """Return pydantic's findings as JSON pointers and messages, at most 20 of them.

    pydantic builds the whole list first, so what is validated has to be bounded before.
    """
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [
        {"pointer": pointer(one["loc"]), "message": _message(one["msg"])}
        for one in found[:MAX_LISTED_ERRORS]
    ]


def first_errors(error: ValidationError) -> str:
    """Return pydantic's first findings in one line of at most 900 characters."""
    return "; ".join(f"{one['pointer']}: {one['message']}" for one in error_list(error)[:3])[:900]


def pointer(location: tuple[int | str, ...]) -> str:
    """Return an RFC 6901 JSON pointer to a place in a document.

    pydantic's mark for "the key itself is wrong" is left out: it is no place.
    """
    places = (str(step) for step in location if step != "[key]")
    steps = (place.replace("~", "~0").replace("/", "~1") for place in places)
    return "".join(f"/{step}" for step in steps)[:MAX_POINTER_CHARS]


def _message(text: str) -> str:
    ours = text.removeprefix(_OUR_PREFIX)
    said = ours if ours != text else text[:1].lower() + text[1:]
    return said[:MAX_MESSAGE_CHARS]
