"""Whether the settings can be used, and whether all that looks like one is one."""

import difflib
from collections.abc import Iterable
from typing import TypeVar

from modelyard.doctor.diagnosis import Diagnosis, failure, ok, warning
from modelyard.process import crash_points
from modelyard.process.config.sources import (
    CONFIG_VARIABLE,
    IN_FILE,
    OriginKind,
    WrongSettingsError,
    secrets_of,
    variable,
)
from modelyard.process.settings import ConfiguredSettings, environment_names, read_settings

ABOUT = "configuration"
LOCAL_STACK = "MODELYARD_LOCAL_STACK"
"""`var/stack.env` of a local stack sets it, for `make up` to know its own addresses."""
OTHERS = frozenset({CONFIG_VARIABLE, LOCAL_STACK, crash_points.VARIABLE})
"""Variables of Modelyard that are no settings."""

S = TypeVar("S", bound=ConfiguredSettings)


def check_configuration(kind: type[S]) -> tuple[S | None, Diagnosis]:
    """Read the settings; return them, if they can be used, and what was found."""
    try:
        settings = read_settings(kind)
        origins = kind.origins().values()
    except WrongSettingsError as error:
        return None, failure(
            ABOUT,
            str(error),
            "Correct it; the option --help of the service lists all settings.",
        )
    given = [one for one in origins if one.kind is not OriginKind.DEFAULT]
    places = sorted({one.config_file or "the environment" for one in given})
    seen = f"{len(given)} settings from {' and '.join(places)}" if given else "defaults only"
    return settings, ok(ABOUT, seen)


def check_variables(kinds: Iterable[type[ConfiguredSettings]]) -> list[Diagnosis]:
    """Find variables that begin with MODELYARD_ and set nothing: most are misspelt."""
    known = set(OTHERS)
    for kind in kinds:
        known |= {variable(kind, field) for field in kind.model_fields}
        known |= {variable(kind, field) + IN_FILE for field in secrets_of(kind)}
    return [_unknown(name, known) for name in environment_names() if name not in known]


def _unknown(name: str, known: Iterable[str]) -> Diagnosis:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
    return warning(
        ABOUT,
        f"{name} is no setting of what is installed here",
        f"Perhaps {near[0]} is meant." if near else "Remove it from the environment.",
    )
