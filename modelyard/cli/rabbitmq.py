"""The command `modelyard rabbitmq`: users, permissions and queues for an operator to import."""

import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from modelyard.contract.ids import ID_PATTERN
from modelyard.contract.rabbitmq import permissions
from modelyard.contract.rabbitmq.definitions import definitions
from modelyard.contract.rabbitmq.permissions import Permissions

RESERVED = ("modelyard", "amq")
"""A subscriber's own queues may not have names that begin with these."""

_BROKER = r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}"

rabbitmq = typer.Typer(
    no_args_is_help=True, help="RabbitMQ's users, permissions and queues for a fleet."
)


@rabbitmq.callback()
def _group() -> None:
    """Users, permissions and queues."""


@rabbitmq.command("definitions")
def print_definitions(
    *,
    host: Annotated[
        list[str] | None, typer.Option(help="A host: prints its queues and its worker's user.")
    ] = None,
    publisher: Annotated[
        list[str] | None, typer.Option(help="A user that sends requests over AMQP.")
    ] = None,
    subscriber: Annotated[
        list[str] | None,
        typer.Option(help="A user that listens to events, with queues named USER.WORD."),
    ] = None,
    vhost: Annotated[str, typer.Option(help="The virtual host.")] = "/",
    passwords: Annotated[
        Path,
        typer.Option(
            help="A JSON file of passwords by user. The command adds a password of 256 random bits "
            "for each user that the file lacks. Only you can read the file."
        ),
    ] = Path("rabbitmq-passwords.json"),
) -> None:
    """Print users, permissions and queues, for `rabbitmqctl import_definitions`.

    The users `gateway` and `dispatcher` are always included. Run it again with more hosts,
    publishers and subscribers to add them: users in the file of passwords keep their passwords.
    """
    hosts = host or []
    _check("--host", hosts)
    _check("--publisher", publisher or [])
    _check("--subscriber", subscriber or [])
    for name in subscriber or []:
        if name.partition(".")[0] in RESERVED:
            message = f"{name!r} can't be a subscriber: queue names that begin so are reserved"
            raise typer.BadParameter(message, param_hint="--subscriber")
    users = [
        permissions.gateway(),
        permissions.dispatcher(),
        *map(permissions.worker, hosts),
        *map(permissions.publisher, publisher or []),
        *map(permissions.subscriber, subscriber or []),
    ]
    twice = [name for name, count in Counter(one.user for one in users).items() if count > 1]
    if twice:
        raise typer.BadParameter(f"these users are given twice: {', '.join(twice)}")
    known = _with_new_passwords(passwords, users)
    typer.echo(json.dumps(definitions(vhost, users, known, host_ids=hosts), indent=2))


@rabbitmq.command("urls")
def write_urls(
    *,
    broker: Annotated[str, typer.Option(help="HOST:PORT at which the users reach RabbitMQ.")],
    user: Annotated[
        list[str] | None, typer.Option(help="A user; all in the file of passwords if not given.")
    ] = None,
    passwords: Annotated[
        Path, typer.Option(help="The JSON file of passwords that `definitions` has written.")
    ] = Path("rabbitmq-passwords.json"),
    folder: Annotated[Path, typer.Option(help="The folder for the files.")] = Path(),
    vhost: Annotated[str, typer.Option(help="The virtual host.")] = "/",
    tls: Annotated[bool, typer.Option("--tls", help="Write amqps:// URLs.")] = False,
) -> None:
    """Write a file USER.amqp-url with the URL of each user, which only you can read.

    Give a process its file as a secret, in MODELYARD_AMQP_URL_FILE.
    """
    if re.fullmatch(_BROKER, broker) is None:
        raise typer.BadParameter(f"{broker!r} is not HOST:PORT", param_hint="--broker")
    known = _read(passwords)
    if not known:
        message = f"{passwords} holds no passwords: `modelyard rabbitmq definitions` writes them"
        raise typer.BadParameter(message, param_hint="--passwords")
    if unknown := [name for name in user or () if name not in known]:
        message = f"{passwords} has no password for {', '.join(unknown)}"
        raise typer.BadParameter(message, param_hint="--user")
    for name in user or known:
        secret = quote(known[name], safe="")
        place = f"{broker}/{quote(vhost, safe='')}"
        url = f"{'amqps' if tls else 'amqp'}://{quote(name, safe='')}:{secret}@{place}"
        file = folder / f"{name}.amqp-url"
        _write(file, f"{url}\n", "--folder")
        typer.echo(f"{file}: the URL of {name}", err=True)


def _check(option: str, names: Iterable[str]) -> None:
    for name in names:
        if re.fullmatch(ID_PATTERN, name) is None:
            message = f"{name!r} is no name: 1 to 128 letters, digits, `_`, `.` and `-`"
            raise typer.BadParameter(message, param_hint=option)


def _with_new_passwords(file: Path, users: Iterable[Permissions]) -> dict[str, str]:
    """Return the passwords in a file; add new ones to it for users that it lacks."""
    known = _read(file)
    missing = [one.user for one in users if one.user not in known]
    if missing:
        known |= {user: secrets.token_urlsafe(32) for user in missing}
        _write(file, json.dumps(known, indent=2) + "\n", "--passwords")
        typer.echo(f"{file}: new passwords for {', '.join(missing)}", err=True)
    return known


def _read(file: Path) -> dict[str, str]:
    try:
        known = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{file}: {error}", param_hint="--passwords") from error
    if not isinstance(known, dict) or not all(isinstance(one, str) for one in known.values()):
        message = f"{file} is not a JSON object of passwords by user"
        raise typer.BadParameter(message, param_hint="--passwords")
    return known


def _write(file: Path, text: str, option: str) -> None:
    """Write a file that only we can read, in one step."""
    fresh = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
            opened.write(text)
        fresh.replace(file)
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}", param_hint=option) from error
