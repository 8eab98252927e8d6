"""What no schema can say of a request; schemathesis loads this module by its path."""

import os
import re
from http import HTTPStatus
from typing import Any

import schemathesis
from schemathesis import Case, CheckContext, HookContext, Response

from gateway.routes.preconditions import IF_MATCH, IF_NONE_MATCH, TAGS_PATTERN
from modelyard.contract.errors import ErrorCode
from modelyard.contract.ids import ID_PATTERN

BEYOND_SCHEMAS = frozenset({"dataset_mount", "result_file", "image"})
"""Fields of catalog entries with rules beyond their pattern: about paths that lie over each other,
and about the parts of an image's name (a registry is a host name; an image's id is no name)."""
CONDITIONS = frozenset({IF_MATCH, IF_NONE_MATCH})
"""Headers that schemathesis 4.32 may fill with `0`, whatever their pattern is."""
OWN_KEY = "SCHEMATHESIS_OWN_KEY"
"""The environment variable with the id of the key with which the requests are sent."""


@schemathesis.check
def only_what_is_stored_refuses_what_follows_the_schema(
    ctx: CheckContext,  # noqa: ARG001 - schemathesis gives it
    response: Response,
    case: Case[Any],
) -> bool | None:
    """Fail if 422 means that a request breaks a rule which its schema could have told."""
    follows = case.meta is not None and case.meta.generation.mode.is_positive
    if not follows or response.status_code != HTTPStatus.UNPROCESSABLE_ENTITY:
        return None
    problem = response.json()
    headers = {one["header"] for one in problem.get("errors", ()) if "header" in one}
    if any(not re.fullmatch(TAGS_PATTERN, case.headers[one]) for one in headers & CONDITIONS):
        return None
    told = {one.get("pointer", "").partition("/")[2] for one in problem.get("errors", ())}
    if problem["code"] == ErrorCode.INVALID_REQUEST and not told <= BEYOND_SCHEMAS:
        raise AssertionError(f"The schema does not tell: {problem['detail']}")
    return None


@schemathesis.hook
def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:  # noqa: ARG001 - schemathesis gives them
    """Let an entry have the name that is in its path, and leave the own key alone."""
    named = case.path_parameters.get("name")
    if case.method == "PUT" and isinstance(case.body, dict):
        name = case.body.get("name")
        if _is_id(name) and _is_id(named):
            case.body["name"] = named
    if case.path_parameters.get("key_id") == os.environ[OWN_KEY]:
        case.path_parameters["key_id"] = "none"


def _is_id(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(ID_PATTERN, name) is not None
