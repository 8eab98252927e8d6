"""What the services of this installation offer to the command line, as entry points.

The command line imports no service: what a service needs may not be installed.
"""

from contextlib import suppress
from importlib.metadata import entry_points
from typing import cast

import typer

from modelyard.doctor.diagnosis import Examination
from modelyard.process.launcher import missing_extra
from modelyard.process.settings import ProcessSettings

SERVICES = ("gateway", "dispatcher", "worker")
_SETTINGS = "modelyard.settings"
_EXAMINATIONS = "modelyard.doctor"


def settings_of(service: str) -> type[ProcessSettings]:
    """Return the settings of a service; raises `typer.BadParameter` if it is not installed."""
    loaded = _loaded(_SETTINGS, service)
    if not (isinstance(loaded, type) and issubclass(loaded, ProcessSettings)):
        raise TypeError(f"the entry point {service} of {_SETTINGS} is {loaded!r}")
    return loaded


def examination_of(service: str) -> Examination:
    """Return the checks of a service; raises `typer.BadParameter` if it is not installed."""
    return cast("Examination", _loaded(_EXAMINATIONS, service))


def installed() -> list[str]:
    """Return the services whose extras are installed."""
    found: list[str] = []
    for service in SERVICES:
        with suppress(typer.BadParameter):
            examination_of(service)
            found.append(service)
    return found


def _loaded(group: str, service: str) -> object:
    found = list(entry_points(group=group, name=service))
    if not found:
        known = ", ".join(SERVICES)
        raise typer.BadParameter(f"{service!r} is none of {known}", param_hint="--service")
    try:
        return found[0].load()
    except ModuleNotFoundError as error:
        raise typer.BadParameter(missing_extra(service, error), param_hint="--service") from error
