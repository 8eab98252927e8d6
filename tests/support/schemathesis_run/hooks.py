"""What no schema can say of a request; schemathesis loads this module by its path."""

import os
import re
from typing import Any

import schemathesis
from schemathesis import Case, HookContext

from modelyard.contract.ids import ID_PATTERN

OWN_KEY = "SCHEMATHESIS_OWN_KEY"
"""The environment variable with the id of the key with which the requests are sent."""


@schemathesis.hook
def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:  # noqa: ARG001 - schemathesis gives them
    """Let an entry have the name that is in its path, and leave the own key alone."""
    named = case.path_parameters.get("name")
    if case.method == "PUT" and named and isinstance(case.body, dict):
        name = case.body.get("name")
        if isinstance(name, str) and re.fullmatch(ID_PATTERN, name):
            case.body["name"] = named
    if case.path_parameters.get("key_id") == os.environ[OWN_KEY]:
        case.path_parameters["key_id"] = "none"
