"""What a check has seen, whether that is well, and what to do if it is not."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """Whether what was seen is well."""

    OK = "ok"
    WARNING = "warning"
    """The service runs, but not as well, or not as safely, as it could."""
    FAILURE = "failure"
    """The service does not run, or can't do its work."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One line of the doctor's report."""

    about: str
    """What was looked at, in a word or two."""
    verdict: Verdict
    seen: str
    advice: str | None = None
    """What to do about it; never missing for a failure."""


Examination = Callable[[Any], Awaitable[list[Diagnosis]]]
"""A service's own checks: from its settings to what they found. It raises nothing."""


def ok(about: str, seen: str) -> Diagnosis:
    """Return that something is well."""
    return Diagnosis(about, Verdict.OK, seen)


def warning(about: str, seen: str, advice: str) -> Diagnosis:
    """Return that something could be better."""
    return Diagnosis(about, Verdict.WARNING, seen, advice)


def failure(about: str, seen: str, advice: str) -> Diagnosis:
    """Return that something keeps the service from its work."""
    return Diagnosis(about, Verdict.FAILURE, seen, advice)


def version_of(text: str) -> tuple[int, ...]:
    """Return the numbers at the beginning of a version, such as (3, 12) of `3.12-rc1`."""
    numbers: list[int] = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)
