"""The commands `modelyard keys`."""

import asyncio
import re
from typing import Annotated

import typer

from modelyard.cli.exit_codes import FAILED, UNAVAILABLE, USAGE
from modelyard.cli.machine.settings import StoreCommandSettings
from modelyard.cli.options import Context
from modelyard.cli.session import session_of
from modelyard.contract.access.api_keys import MAX_EXPIRY_S, CreatedApiKey
from modelyard.contract.access.scopes import Role, Scope
from modelyard.contract.errors import StoreUnavailableError, StoreUnreadableError
from modelyard.process.config.sources import WrongSettingsError
from modelyard.process.launcher import missing_extra
from modelyard.process.settings import read_settings

keys = typer.Typer(no_args_is_help=True, help="API keys and what each may do.")

Name = Annotated[str, typer.Argument(help="What people call the key: 1 to 64 characters.")]
Expires = Annotated[
    str | None,
    typer.Option(
        help="How long the key is valid, such as 90d, 12h or 30m. Without it the key is valid "
        "until it is revoked or the key that creates it expires."
    ),
]

_DURATION = re.compile(r"([0-9]{1,9})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}


@keys.command("create")
def create_key(
    ctx: Context,
    name: Name,
    *,
    role: Annotated[Role | None, typer.Option(help="A name for a set of scopes.")] = None,
    scope: Annotated[
        list[Scope] | None, typer.Option(help="One scope of the key; may be repeated.")
    ] = None,
    expires: Expires = None,
) -> None:
    """Create a key and print it on standard output, this once only.

    Give a role or scopes. You can give only scopes that your own key has.
    """
    if (role is None) == (not scope):
        raise typer.BadParameter("give either --role or --scope", param_hint="--role")
    session = session_of(ctx)
    created = session.yard.create_key(
        name, role=role, scopes=scope or None, expires_in_s=_seconds(expires)
    )
    session.out.created_key(created)


@keys.command("list")
def list_keys(ctx: Context) -> None:
    """List all keys, the oldest first, without their secrets."""
    session = session_of(ctx)
    session.out.keys(session.yard.keys())


@keys.command("revoke")
def revoke_key(
    ctx: Context, key_id: Annotated[str, typer.Argument(help="The id of the key.")]
) -> None:
    """Revoke a key for ever; within seconds no gateway accepts it any more."""
    session = session_of(ctx)
    session.out.one(session.yard.revoke_key(key_id))


@keys.command("bootstrap")
def bootstrap(
    ctx: Context,
    name: Annotated[str, typer.Option(help="What people call the key.")] = "bootstrap",
    *,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Create the key even if there is a valid key that may create others."
        ),
    ] = False,
    expires: Expires = None,
) -> None:
    """Create the first admin key directly in MongoDB and print it, this once only.

    The command needs the dispatcher's MODELYARD_MONGO_URL, or its file in MODELYARD_CONFIG, and no
    gateway.
    """
    # Only this command needs MongoDB's driver, which takes a while to import.
    session = session_of(ctx)
    try:
        from modelyard.cli.machine.bootstrap import bootstrap_key  # noqa: PLC0415
    except ModuleNotFoundError as error:
        session.out.error(missing_extra("dispatcher", error))
        raise typer.Exit(USAGE) from error
    try:
        url = read_settings(StoreCommandSettings).mongo_url.get_secret_value()
        created = asyncio.run(bootstrap_key(url, name, _seconds(expires), force=force))
    except (WrongSettingsError, ValueError) as error:
        session.out.error(str(error))
        raise typer.Exit(USAGE) from error
    except StoreUnavailableError as error:
        session.out.error(error.message)
        raise typer.Exit(UNAVAILABLE) from error
    except StoreUnreadableError as error:
        session.out.error(error.message)
        raise typer.Exit(FAILED) from error
    if isinstance(created, CreatedApiKey):
        session.out.created_key(created)
        return
    ids = ", ".join(created)
    session.out.error(
        f"A valid key that may create others exists already: {ids}. Use it, or add another one "
        "with --force."
    )
    raise typer.Exit(FAILED)


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    match = _DURATION.fullmatch(text)
    if match is None or not int(match.group(1)):
        raise typer.BadParameter(
            f"{text!r} is not a number with one of s, m, h, d, w, such as 90d",
            param_hint="--expires",
        )
    seconds = float(int(match.group(1)) * _SECONDS[match.group(2)])
    if seconds > MAX_EXPIRY_S:
        raise typer.BadParameter(
            f"at most {MAX_EXPIRY_S // 86_400}d, about ten years", param_hint="--expires"
        )
    return seconds
