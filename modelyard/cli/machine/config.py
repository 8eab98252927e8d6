"""The commands `modelyard config`."""

import json
from typing import Annotated

import typer

from modelyard.cli.exit_codes import USAGE
from modelyard.cli.machine.installed import settings_of
from modelyard.cli.machine.settings import CommandLineSettings
from modelyard.cli.options import Context
from modelyard.cli.session import session_of
from modelyard.contract.strict_json import JsonValue
from modelyard.process.config.masking import masked_settings
from modelyard.process.config.sources import Origin, WrongSettingsError, variable
from modelyard.process.settings import ConfiguredSettings, read_settings

config = typer.Typer(no_args_is_help=True, help="The settings that are in force.")

Service = Annotated[
    str | None,
    typer.Option(help="gateway, dispatcher or worker; without it the command line's own settings."),
]


@config.callback()
def _group() -> None:
    """Show settings."""


@config.command("show")
def show(ctx: Context, *, service: Service = None) -> None:
    """Print each setting, and whether the environment, the file or the default sets it.

    The file is the one that MODELYARD_CONFIG names. Passwords and keys are masked. Run it with the
    environment of the service that is meant.
    """
    out = session_of(ctx).out
    kind: type[ConfiguredSettings] = settings_of(service) if service else CommandLineSettings
    try:
        values = masked_settings(read_settings(kind))
        origins = kind.origins()
    except WrongSettingsError as error:
        out.error(str(error))
        raise typer.Exit(USAGE) from error
    if out.as_json:
        out.value([_entry(kind, field, values[field], origins[field]) for field in values])
        return
    rows = [
        (variable(kind, field), _text(values[field]), _place(origins[field])) for field in values
    ]
    out.table(("setting", "value", "from"), rows)


def _entry(
    kind: type[ConfiguredSettings], field: str, value: JsonValue, origin: Origin
) -> JsonValue:
    return {
        "setting": variable(kind, field),
        "value": value,
        "from": origin.kind.value,
        "name": origin.name,
        "file": origin.config_file,
        "secret_file": origin.secret_file,
    }


def _text(value: JsonValue) -> str:
    match value:
        case None:
            return "-"
        case str():
            return value
        case _:
            return json.dumps(value, ensure_ascii=False)


def _place(origin: Origin) -> str:
    place = " ".join(filter(None, (origin.kind.value, origin.config_file)))
    return f"{place}, in {origin.secret_file}" if origin.secret_file else place
