"""A result that is not JSON: its bytes, and what they are."""

import base64
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

from modelyard.contract.content.media_types import MediaType


def _decoded(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except ValueError as error:
        raise ValueError("it is not base64") from error


Base64 = Annotated[
    bytes,
    BeforeValidator(_decoded, json_schema_input_type=str),
    PlainSerializer(
        lambda content: base64.b64encode(content).decode(), return_type=str, when_used="json"
    ),
]
"""Bytes that are base64 in JSON."""


class ResultContent(BaseModel):
    """A result in a worker's report."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", protected_namespaces=(), use_attribute_docstrings=True
    )

    content_type: MediaType
    content: Base64
