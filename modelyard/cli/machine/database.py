"""The commands `modelyard database`: copies of the record."""

from pathlib import Path
from typing import Annotated

import typer

from modelyard.cli.exit_codes import FAILED, UNAVAILABLE, USAGE
from modelyard.cli.machine.settings import StoreCommandSettings
from modelyard.cli.options import Context
from modelyard.cli.session import session_of
from modelyard.contract.errors import StoreUnavailableError
from modelyard.process.config.sources import WrongSettingsError
from modelyard.process.launcher import missing_extra
from modelyard.process.settings import read_settings

database = typer.Typer(no_args_is_help=True, help="Copies of the database.")

File = Annotated[Path, typer.Argument(help="The file of the backup.")]


@database.callback()
def _group() -> None:
    """Back up and restore."""


@database.command("backup")
def back_up(ctx: Context, file: File) -> None:
    """Write the whole database, as of one moment, to a new file.

    Everything may go on meanwhile. The command needs the dispatcher's MODELYARD_MONGO_URL, or its
    file in MODELYARD_CONFIG. The file holds inputs, results and hashes of keys; only you can read
    it.
    """
    _copy(ctx, file, restoring=False)


@database.command("restore")
def restore(ctx: Context, file: File) -> None:
    """Fill an empty database from a backup.

    Gateways and dispatchers must be stopped. Read docs/upgrading.md first: what has happened since
    the backup is not in it.
    """
    _copy(ctx, file, restoring=True)


def _copy(ctx: Context, file: Path, *, restoring: bool) -> None:
    session = session_of(ctx)
    try:
        # Only these commands need MongoDB's driver, which takes a while to import.
        from modelyard.store.backup import copies  # noqa: PLC0415
    except ModuleNotFoundError as error:
        session.out.error(missing_extra("dispatcher", error))
        raise typer.Exit(USAGE) from error
    copy = copies.restore if restoring else copies.back_up
    try:
        copied = copy(read_settings(StoreCommandSettings).mongo_url.get_secret_value(), file)
    except (WrongSettingsError, ValueError) as error:
        session.out.error(str(error))
        raise typer.Exit(USAGE) from error
    except StoreUnavailableError as error:
        session.out.error(error.message)
        raise typer.Exit(UNAVAILABLE) from error
    except copies.UnusableBackupError as error:
        session.out.error(str(error))
        raise typer.Exit(FAILED) from error
    if session.out.as_json:
        session.out.value(dict(copied))
    else:
        session.out.table(
            ("collection", "documents"), [(name, str(count)) for name, count in copied.items()]
        )
