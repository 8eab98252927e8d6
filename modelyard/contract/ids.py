"""Ids, which become parts of URLs, container names and database keys, and their grammar."""

import uuid
from dataclasses import dataclass
from typing import Annotated, Any

import uuid_utils.compat
from pydantic import GetCoreSchemaHandler, StringConstraints
from pydantic_core.core_schema import CoreSchema, custom_error_schema

ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$"
OPERATION_ID_PATTERN = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"


@dataclass(frozen=True, slots=True)
class MustBe:
    """In an `Annotated`, after the constraints: what a value must be, in words for people.

    An error says this instead of the pattern, which few people read.
    """

    words: str

    def __get_pydantic_core_schema__(
        self,
        source: Any,  # noqa: ANN401 - pydantic's protocol
        handler: GetCoreSchemaHandler,
    ) -> CoreSchema:
        return custom_error_schema(
            handler(source),
            custom_error_type="must_be",
            custom_error_message=f"must be {self.words}",
        )


_A_NAME = MustBe("1 to 128 letters, digits, `_`, `.` and `-`, with a letter or digit first")
_A_UUID = MustBe("a UUID in lower case, as Modelyard gave it")

# pydantic matches with Rust's regex engine, where `$` is the very end of the text, as in the
# ECMA dialect of JSON Schema. Python's own `re` would let a trailing newline through: use
# `fullmatch` there.
Id = Annotated[str, StringConstraints(strict=True, pattern=ID_PATTERN), _A_NAME]
"""A job, model, dataset or host: 1 to 128 letters, digits, `_`, `.` and `-`."""

OperationId = Annotated[str, StringConstraints(strict=True, pattern=OPERATION_ID_PATTERN), _A_UUID]
"""A UUID in its usual lower-case form (RFC 9562)."""

InputId = Annotated[str, StringConstraints(strict=True, pattern=OPERATION_ID_PATTERN), _A_UUID]
"""An uploaded input: a UUID, too."""

Incarnation = Annotated[
    str, StringConstraints(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
]
"""One boot of a host's worker, as the worker names it: a UUID."""

ContainerId = Annotated[str, StringConstraints(strict=True, pattern=r"^[a-f0-9]{12,64}$")]
"""A container as its engine names it: 64 hexadecimal digits, or the first of them."""

DEFAULT_TENANT = "default"

_KEY_NAMESPACE = uuid.UUID("6d2b8f4e-3c1a-5b77-9a43-0f5f6c1d2e90")


def new_operation_id() -> str:
    """Return a new UUIDv7 (RFC 9562, section 5.7): unique, and roughly ordered by time."""
    return str(uuid_utils.compat.uuid7())


def operation_id_for_key(key: str, *, tenant: str = DEFAULT_TENANT) -> str:
    """Return the operation id that belongs to an idempotency key: a UUIDv5 of tenant and key.

    HTTP's `Idempotency-Key` and AMQP's `message_id` both become an id this way, so one key is one
    operation, whether it comes over HTTP or AMQP. In a batch the key of the request at `index` is
    `"{key}/{index}"`.
    """
    return str(uuid.uuid5(_KEY_NAMESPACE, f"{tenant}\n{key}"))
