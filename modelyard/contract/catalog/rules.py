"""Rules for catalog entries that come in; entries that are already stored need not follow them.

A new version may make a rule stricter. Entries that an older version has stored, or that one of our
own processes has sent, must stay readable: a job has to be listed, unloaded and terminated whatever
its model looks like. So an entry is checked where it comes in (the gateway's API, the command line,
a constructor in Python), and again by the worker before it creates a container. All other code
reads it with the context `AS_RECORDED`, which checks its types only.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic import BaseModel, GetCoreSchemaHandler, ValidationError, ValidationInfo
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, SchemaValidator
from pydantic_core.core_schema import (
    ValidatorFunctionWrapHandler,
    with_info_wrap_validator_function,
)

M = TypeVar("M", bound=BaseModel)

AS_RECORDED: Final = {"modelyard": "as recorded"}
"""The pydantic context for reading entries that were checked when they came in."""


def is_recorded(info: ValidationInfo) -> bool:
    """Tell whether only types are checked."""
    return info.context is AS_RECORDED


class _OnEntry:
    """See `ON_ENTRY`."""

    def __get_pydantic_core_schema__(
        self,
        source: Any,  # noqa: ANN401 - pydantic's protocol
        handler: GetCoreSchemaHandler,
    ) -> CoreSchema:
        types_only = SchemaValidator(handler.generate_schema(source))

        def validate(
            value: object, with_rules: ValidatorFunctionWrapHandler, info: ValidationInfo
        ) -> object:
            if is_recorded(info):
                return types_only.validate_python(value, context=AS_RECORDED)
            return with_rules(value)

        return with_info_wrap_validator_function(validate, handler(source))


ON_ENTRY: Final = _OnEntry()
"""Last in an `Annotated`: the constraints before it are rules for what comes in."""


@dataclass(frozen=True, slots=True)
class BrokenRule:
    """A rule that an entry breaks."""

    field: tuple[str, ...]
    message: str


Rule = Callable[[M], Iterator[BrokenRule]]


def follow_rules(value: object, entry: M, rules: Sequence[Rule[M]], info: ValidationInfo) -> M:
    """Return `entry`, which was built from `value`, if it follows the rules.

    Raises pydantic's `ValidationError` with the field of each broken rule. If `value` is the entry
    itself, it was built before and is only put into a larger object: it is not checked again.
    """
    if value is entry or is_recorded(info):
        return entry
    broken = tuple(one for rule in rules for one in rule(entry))
    if broken:
        raise ValidationError.from_exception_data(type(entry).__name__, list(_details(broken)))
    return entry


def _details(broken: Iterable[BrokenRule]) -> Iterator[InitErrorDetails]:
    for one in broken:
        # The message is a value, not a template: it may hold braces.
        error = PydanticCustomError("rule", "{message}", {"message": one.message})
        yield InitErrorDetails(type=error, loc=one.field, input=None)
