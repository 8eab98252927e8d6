"""Rules that hold for what comes in, and are not asked of what was let in before.

A rule may become stricter with a new version. What an older version has stored, or one of our own
processes has sent, must still be readable then: a job has to be listed, unloaded and terminated
whatever its model looks like. So a catalog entry is judged where it comes in (the gateway's door,
the command line, a constructor in Python) and again by the worker before it makes a container.
Everything else reads it with the context `AS_RECORDED`, by which only its types count.
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
"""The pydantic context for reading what was judged when it came in."""


def is_recorded(info: ValidationInfo) -> bool:
    """Tell whether only types count."""
    return info.context is AS_RECORDED


class _OnEntry:
    """See `ON_ENTRY`."""

    def __get_pydantic_core_schema__(
        self,
        source: Any,  # noqa: ANN401 - pydantic's protocol
        handler: GetCoreSchemaHandler,
    ) -> CoreSchema:
        types_only = SchemaValidator(handler.generate_schema(source))

        def judge(
            value: object, judged: ValidatorFunctionWrapHandler, info: ValidationInfo
        ) -> object:
            if is_recorded(info):
                return types_only.validate_python(value, context=AS_RECORDED)
            return judged(value)

        return with_info_wrap_validator_function(judge, handler(source))


ON_ENTRY: Final = _OnEntry()
"""Last in an `Annotated`: the constraints before it are rules for what comes in."""


@dataclass(frozen=True, slots=True)
class BrokenRule:
    """A rule that an entry breaks."""

    field: tuple[str, ...]
    message: str


Rule = Callable[[M], Iterator[BrokenRule]]


def follow_rules(value: object, entry: M, rules: Sequence[Rule[M]], info: ValidationInfo) -> M:
    """Return the entry made of `value`; raises what pydantic raises, with a place for each fault.

    One that is made already is only put into something larger, and was judged before if ever.
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
