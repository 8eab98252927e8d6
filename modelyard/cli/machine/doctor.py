"""The command `modelyard doctor`."""

import asyncio
import logging
import warnings
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from modelyard.cli.exit_codes import FAILED, USAGE
from modelyard.cli.machine.installed import examination_of, installed, settings_of
from modelyard.cli.machine.settings import CommandLineSettings
from modelyard.cli.options import Context
from modelyard.cli.printing.output import Output
from modelyard.cli.session import session_of
from modelyard.doctor.configuration import check_configuration, check_variables
from modelyard.doctor.diagnosis import Diagnosis, Verdict

if TYPE_CHECKING:
    from modelyard.process.settings import ConfiguredSettings

_STYLES = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.FAILURE: "red"}


def doctor(
    ctx: Context,
    *,
    service: Annotated[
        str | None,
        typer.Option(
            help="gateway, dispatcher or worker; without it all whose extras are installed."
        ),
    ] = None,
) -> None:
    """Check whether this machine is ready for a service, and say what to do where it is not.

    Run it with the environment and as the user of the service. It changes nothing. The exit code is
    1 if there is a failure.
    """
    out = session_of(ctx).out
    services = [service] if service else installed()
    if not services:
        out.error("No service is installed here: pip install 'modelyard[worker]', for example.")
        raise typer.Exit(USAGE)
    _silence_libraries()
    found = asyncio.run(_examined(services))
    if out.as_json:
        out.value(
            [{"service": name, **asdict(one)} for name, all_of in found.items() for one in all_of]
        )
    else:
        for name, all_of in found.items():
            _print(out, name, all_of)
    if any(one.verdict is Verdict.FAILURE for all_of in found.values() for one in all_of):
        raise typer.Exit(FAILED)


def _silence_libraries() -> None:
    """Keep libraries from writing of each failure in words of their own too."""
    logging.disable()
    # aio_pika leaves the coroutine of a connection that never opened.
    warnings.filterwarnings("ignore", message="coroutine 'Connection.close' was never awaited")


async def _examined(services: list[str]) -> dict[str, list[Diagnosis]]:
    kinds: list[type[ConfiguredSettings]] = [CommandLineSettings, *map(settings_of, installed())]
    variables = check_variables(kinds)
    found: dict[str, list[Diagnosis]] = {}
    for service in services:
        settings, configured = check_configuration(settings_of(service))
        found[service] = [configured, *variables]
        if settings is not None:
            found[service] += await examination_of(service)(settings)
    return found


def _print(out: Output, service: str, found: list[Diagnosis]) -> None:
    out.line(service)
    for one in found:
        out.line(f"  {one.verdict:<8} {one.about}: {one.seen}", style=_STYLES[one.verdict])
        if one.advice:
            out.line(f"           {one.advice}")
