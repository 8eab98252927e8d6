"""The OpenAPI document: adds the bodies and errors that FastAPI can't derive from the routes."""

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from gateway.routes.preconditions import TAGS_PATTERN
from modelyard.contract.access.api_keys import NewApiKey
from modelyard.contract.answers import PROBLEM_MEDIA_TYPE, Problem
from modelyard.contract.catalog.entries import DatasetSpec, ModelSpec
from modelyard.contract.ids import ID_PATTERN
from modelyard.contract.messages import KEY_PATTERN, InferenceRequest, JobRequest
from modelyard.contract.views import DryRun, OperationView

Document = dict[str, Any]
Responses = dict[int | str, Document]

DESCRIPTION = """\
Runs model containers on a fleet of plain Docker hosts, driven by durable job requests.

Submit a request with `POST /v1/jobs`; it answers 202 with the operation, which is polled at
`GET /v1/operations/{id}?wait=30`. Every error is an RFC 9457 problem with a stable `code`.

`HEAD` answers as `GET` does, without the content; `OPTIONS` answers 204 with `Allow`.
"""

_REFS = "#/components/schemas/{model}"
_BODIES = (JobRequest, InferenceRequest, ModelSpec, DatasetSpec, NewApiKey)
_INPUT = "{model}Input"


def _problem(description: str) -> Document:
    schema = {"$ref": _REFS.format(model=Problem.__name__)}
    return {"description": description, "content": {PROBLEM_MEDIA_TYPE: {"schema": schema}}}


def _body(model: str, examples: Document) -> Document:
    return _json_body({"$ref": _ref(model)}, examples)


def _json_body(schema: Document, examples: Document) -> Document:
    content = {"application/json": {"schema": schema, "examples": examples}}
    return {"requestBody": {"required": True, "content": content}}


def _ref(model: str) -> str:
    return _REFS.format(model=_INPUT.format(model=model))


def _header(name: str, description: str, *, pattern: str | None = None) -> Document:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": {"type": "string"} | ({} if pattern is None else {"pattern": pattern}),
    }


_NAME: Document = {"type": "string", "pattern": ID_PATTERN}
_CREATE = {
    "job_id": "j-1",
    "model": "m-131",
    "dataset": "ds-550",
    "operation_type": "DEPLOY_CREATE",
    "container_id": "",
}
_INPUTS = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0, 1]}]}
_INFER = {"job_id": "j-1", "operation_type": "INFER", "input": _INPUTS}
_MODEL = {
    "image": "models/digits:1",
    "profile": "open-inference",
    "port": 8080,
    "resources": {"cpus": 1, "memory": 536870912},
}

_KEY = _header(
    "Idempotency-Key",
    "1 to 255 printable ASCII characters. Sending the same key with the same request again returns "
    "the same operation; with another request it is 422 `idempotency_key_reused`. In a batch the "
    "request at `index` has the key `KEY/index`.",
    pattern=KEY_PATTERN,
)
_PREFER = _header("Prefer", "`wait=N` waits up to N seconds (at most 60) for the operation to end.")
_DRY_RUN = {
    "name": "dry_run",
    "in": "query",
    "required": False,
    "description": "With `true` the request is checked and nothing is made: the answer is 200 and "
    "says what would become of it now.",
    "schema": {"type": "boolean", "default": False},
}

_IF_MATCH = _header(
    "If-Match",
    "Entity tags, of which the entry must have one; `*`: there must be an entry. Otherwise the "
    "answer is 412.",
    pattern=TAGS_PATTERN,
)
_IF_NONE_MATCH = _header(
    "If-None-Match",
    "Entity tags, of which the entry must have none; `*`: there must be no entry. Otherwise a read "
    "is answered with 304, and a write with 412.",
    pattern=TAGS_PATTERN,
)
_ETAG = {"ETag": {"description": "Changes with the entry.", "schema": {"type": "string"}}}

EVERYWHERE: Responses = {
    408: _problem("`invalid_request`: the request did not arrive in time."),
    421: _problem("`misdirected`: the gateway does not answer for this host name."),
    431: _problem("`invalid_request`: the header has more than 16 KiB."),
    500: _problem("`internal`: an unexpected error in the gateway."),
    503: _problem("`unavailable`, with `Retry-After`."),
}
UNAVAILABLE: Responses = {503: _problem("`unavailable`, with `Retry-After`.")}
READ_ANSWERS: Responses = UNAVAILABLE
ONE_ANSWERS: Responses = {
    404: _problem("`not_found`."),
    422: _problem("`invalid_request`: a parameter is invalid."),
    **UNAVAILABLE,
}
_CHANGED = _problem("`precondition_failed`: the entry is not as the request's headers expect.")
ENTRY_ANSWERS: Responses = {
    200: {"headers": _ETAG},
    304: {"description": "The client has the entry as it is.", "headers": _ETAG},
    412: _CHANGED,
    **ONE_ANSWERS,
}
DELETE_ENTRY_ANSWERS: Responses = {412: _CHANGED, **ONE_ANSWERS}
CANCEL_ANSWERS: Responses = {
    200: {"model": OperationView, "description": "The operation is CANCELLED."},
    409: _problem("`already_ended`: the operation had already ended in another state."),
    **ONE_ANSWERS,
}
REPLAY_ANSWERS: Responses = {
    409: _problem("`not_replayable`: it holds no requests, or was not recorded whole."),
    **ONE_ANSWERS,
}
DELETE_ANSWERS: Responses = {
    409: _problem("`still_in_use`: something needs it; the detail says what."),
    **ONE_ANSWERS,
}
LIST_ANSWERS: Responses = {
    422: _problem("`invalid_request`: a parameter is unknown, repeated or invalid."),
    **UNAVAILABLE,
}
FILTERED_LIST_ANSWERS: Responses = {
    422: _problem(
        "`invalid_request`: a parameter is unknown, repeated or invalid; `query_too_slow`: MongoDB "
        "did not find what the filters leave within 1.5 s; for operations the detail names filters "
        "that help."
    ),
    **UNAVAILABLE,
}
_BODY_ANSWERS: Responses = {
    400: _problem("`invalid_json`."),
    413: _problem("`body_too_large`."),
    415: _problem("`unsupported_media_type`."),
    **UNAVAILABLE,
}
ACCESS_ANSWERS: Responses = {
    "401": _problem("`unauthenticated`: there is no valid API key; with `WWW-Authenticate`."),
    "429": _problem("`too_many_failures`, with `Retry-After`: the key was not checked."),
    "403": _problem("`forbidden`: the API key lacks the scope that the detail names."),
}
CREATE_KEY_ANSWERS: Responses = {
    403: _problem(
        "`forbidden`: the API key lacks `keys:admin`. `grant_too_large`: the new key would have "
        "more scopes, or be valid for longer, than the key that creates it."
    ),
    422: _problem("`invalid_request`, with JSON pointers."),
    **_BODY_ANSWERS,
}
PUT_ANSWERS: Responses = {
    200: {"headers": _ETAG},
    201: {"description": "Created: the name is new.", "headers": _ETAG},
    412: _CHANGED,
    422: _problem("`invalid_request`, with JSON pointers."),
    **_BODY_ANSWERS,
}
RESULT_ANSWERS: Responses = {
    200: {
        "description": "The model's answer, with the media type that it gave.",
        "content": {
            "application/json": {},
            "*/*": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    409: _problem("`result_not_ready`, with `Retry-After`."),
    **ONE_ANSWERS,
    404: _problem("`not_found`, or `no_result` if the operation ended without a result."),
}
UPLOAD_ANSWERS: Responses = {
    413: _problem("`body_too_large`."),
    408: _problem("`invalid_request`: the input was 30 s behind 32 KiB a second."),
    415: _problem("`unsupported_media_type`: without one media type, or with a content encoding."),
    422: _problem("`invalid_request`: the input is empty."),
    503: _problem(
        "`unavailable`, with `Retry-After`; also while this client or the gateway has as many "
        "uploads as it may."
    ),
}
UPLOAD_BODY: Document = {
    "requestBody": {
        "required": True,
        "description": "The input, of any type, sent to the model as it is.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
SUBMIT_ANSWERS: Responses = {
    200: {
        "model": OperationView | DryRun,
        "description": "With `Prefer: wait=N`: the operation has ended. With `dry_run=true`: what "
        "would become of the request.",
    },
    422: _problem(
        "`invalid_request`, `unknown_model`, `unknown_dataset`, `input_gone` or "
        "`idempotency_key_reused`."
    ),
    **_BODY_ANSWERS,
}
INFERENCE_ANSWERS: Responses = {
    **SUBMIT_ANSWERS,
    404: _problem("`not_found`: the catalog has no model of this name."),
    409: _problem("`no_serving_job`: no job of the model can take an inference now."),
    422: _problem(
        "`invalid_request`, `unknown_dataset`, `idempotency_key_reused`, or `unsupported_verb`: "
        "the model has the profile `batch`."
    ),
}
RETRY_ANSWERS: Responses = {
    200: {"model": OperationView, "description": "With `Prefer: wait=N`: the operation has ended."},
    404: ONE_ANSWERS[404],
    409: _problem(
        "`not_retryable`: the operation is open or has succeeded, or its request was not recorded "
        "completely."
    ),
    422: SUBMIT_ANSWERS[422],
    **UNAVAILABLE,
}
BATCH_ANSWERS: Responses = {
    422: _problem("`invalid_request` or `batch_too_large`: the body is not a batch."),
    **_BODY_ANSWERS,
}

SUBMIT_BODY = {
    **_body(
        "JobRequest",
        {
            "create": {"summary": "A call of the original system", "value": _CREATE},
            "infer": {"summary": "An inference", "value": _INFER},
        },
    ),
    "parameters": [_DRY_RUN, _KEY, _PREFER],
}
INFERENCE_BODY = {
    **_body(
        "InferenceRequest", {"infer": {"summary": "An inference", "value": {"input": _INPUTS}}}
    ),
    "parameters": [
        {"name": "name", "in": "path", "required": True, "schema": _NAME},
        {
            "name": "dataset",
            "in": "query",
            "required": False,
            "description": "Only jobs that were created with this dataset.",
            "schema": _NAME,
        },
        _KEY,
        _PREFER,
    ],
}
SUBMIT_HEADERS = {"parameters": [_KEY, _PREFER]}
_REQUESTS: Document = {
    "type": "array",
    "minItems": 1,
    "maxItems": 1000,
    # Whatever else is in the list is refused by itself, and the others are accepted.
    "items": {"anyOf": [{"$ref": _ref("JobRequest")}, {}]},
}
BATCH_BODY = {
    **_json_body(
        {
            "oneOf": [
                {
                    "type": "object",
                    "required": ["requests"],
                    "additionalProperties": False,
                    "properties": {"requests": _REQUESTS},
                },
                _REQUESTS,
            ]
        },
        {"two": {"summary": "Two requests", "value": {"requests": [_CREATE, _INFER]}}},
    ),
    "parameters": [_KEY],
}
CONDITIONAL = {"parameters": [_IF_MATCH, _IF_NONE_MATCH]}
MODEL_BODY = _body("ModelSpec", {"model": {"summary": "A model", "value": _MODEL}}) | CONDITIONAL
DATASET_BODY = CONDITIONAL | _body(
    "DatasetSpec", {"folder": {"summary": "A folder", "value": {"path": "/srv/datasets/ds-550"}}}
)

KEY_BODY = _body(
    "NewApiKey",
    {"user": {"summary": "A key of a front end", "value": {"name": "shop", "role": "user"}}},
)


def install(app: FastAPI) -> None:
    """Complete the app's OpenAPI document with the schemas of request bodies and problems."""
    from_routes = app.openapi

    def complete() -> Document:
        document = from_routes()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        if _INPUT.format(model=JobRequest.__name__) not in schemas:
            schemas |= _schemas_of_bodies()
            # FastAPI's own validation errors, which the gateway never sends.
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            _add_access_answers(document)
        return document

    app.openapi = complete  # type: ignore[method-assign]


def _add_access_answers(document: Document) -> None:
    """Add 401, 403 and 429 to operations that need a scope; FastAPI adds the scheme itself."""
    for methods in document["paths"].values():
        for operation in methods.values():
            if "security" in operation:
                operation["responses"] |= ACCESS_ANSWERS


def _schemas_of_bodies() -> Document:
    _, bodies = models_json_schema(
        [(model, "validation") for model in _BODIES],
        ref_template=_REFS.format(model=_INPUT),
    )
    _, problems = models_json_schema([(Problem, "serialization")], ref_template=_REFS)
    for entry in (ModelSpec, DatasetSpec):
        _leave_name_to_path(bodies["$defs"][entry.__name__])
    inputs = {_INPUT.format(model=name): schema for name, schema in bodies["$defs"].items()}
    _close_maps(inputs)
    return {**inputs, **problems["$defs"]}


def _leave_name_to_path(entry: Document) -> None:
    """Say that an entry need not have its name, which is in the path."""
    entry["required"].remove("name")
    entry["properties"]["name"]["description"] = "As in the path; it may be left out."


def _close_maps(schema: object) -> None:
    """Say that no other names are allowed where all names have a pattern; pydantic does not."""
    if isinstance(schema, dict):
        if "patternProperties" in schema:
            schema.setdefault("additionalProperties", False)
        for inner in schema.values():
            _close_maps(inner)
    elif isinstance(schema, list):
        for inner in schema:
            _close_maps(inner)
