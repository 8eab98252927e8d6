"""Reading a client's request, with errors that point at what is wrong: the same by both doors."""

from pydantic import ValidationError

from modelyard.contract.errors import ErrorCode, InvalidRequestError
from modelyard.contract.messages import JobRequest
from modelyard.contract.strict_json import JsonValue

MAX_LISTED_ERRORS = 20
MAX_POINTER_CHARS = 256
"""A name that a client chose is part of a pointer; a pointer is for people."""
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
    try:
        return JobRequest.model_validate(value)
    except ValidationError as error:
        listed = error_list(error)
        first = listed[0]
        where = f"`{first['pointer'].lstrip('/')}` " if first["pointer"] else ""
        raise InvalidRequestError(
            ErrorCode.INVALID_REQUEST,
            f"The request does not follow its schema: {where}{first['message']}.",
            errors=listed,
        ) from error


def error_list(error: ValidationError) -> list[dict[str, str]]:
    """Return pydantic's findings as JSON pointers and messages, at most 20 of them."""
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
    return ours[:500] if ours != text else text[:1].lower() + text[1:500]
