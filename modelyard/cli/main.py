"""The command `modelyard`: its options, its groups of commands, and its errors.

Exit codes: 0 done, 1 the operation failed or the request was refused, 2 wrong usage, 3 the
service is unavailable.
"""

import sys
from typing import Annotated

import typer

from modelyard import __version__
from modelyard.cli import hosts, jobs, operations
from modelyard.cli.catalog import datasets, models
from modelyard.cli.dead_letters import dead_letters
from modelyard.cli.exit_codes import FAILED, UNAVAILABLE, USAGE
from modelyard.cli.keys import keys
from modelyard.cli.machine.config import config
from modelyard.cli.machine.doctor import doctor
from modelyard.cli.options import Context
from modelyard.cli.output import Output
from modelyard.cli.rabbitmq import rabbitmq
from modelyard.cli.session import Session
from modelyard.client import ApiError, OperationFailed, ServiceUnavailableError
from modelyard.client.credentials import VARIABLE
from modelyard.contract.errors import ErrorCode

_ADVICE: dict[str, str] = {
    ErrorCode.UNAUTHENTICATED: f"Set {VARIABLE} to a valid key of this gateway. An administrator "
    "creates one with `modelyard keys create NAME --role user`.",
    ErrorCode.FORBIDDEN: "Ask an administrator for a key with the scope: `modelyard keys create "
    "NAME --scope ...`.",
}

commands = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Run model containers on a fleet of plain Docker hosts.\n\n"
    "To a gateway that asks for an API key it sends the one in MODELYARD_API_KEY, or in the file "
    "that MODELYARD_API_KEY_FILE names.\n\n"
    "Exit codes: 0 done, 1 the operation failed or the request was refused, 2 wrong usage, 3 the "
    "service is unavailable.",
)
# `modelyard --help` lists the commands in this order, and the groups after them.
commands.command("submit")(jobs.submit)
commands.command("create")(jobs.create)
commands.command("load")(jobs.load)
commands.command("infer")(jobs.infer)
commands.command("unload")(jobs.unload)
commands.command("terminate")(jobs.terminate)
commands.command("temp")(jobs.temp)
commands.command("cancel")(operations.cancel)
commands.command("retry")(operations.retry)
commands.command("status")(operations.status)
commands.command("explain")(operations.explain)
commands.command("result")(operations.result)
commands.command("wait")(operations.wait)
commands.command("jobs")(jobs.list_jobs)
commands.command("operations")(operations.list_operations)
commands.command("hosts")(hosts.list_hosts)
commands.command("cordon")(hosts.cordon)
commands.command("uncordon")(hosts.uncordon)
commands.command("drain")(hosts.drain)
commands.command("doctor")(doctor)
commands.add_typer(models, name="models")
commands.add_typer(datasets, name="datasets")
commands.add_typer(dead_letters, name="dead-letters")
commands.add_typer(keys, name="keys")
commands.add_typer(rabbitmq, name="rabbitmq")
commands.add_typer(config, name="config")


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer gives it so
    if wanted:
        typer.echo(f"modelyard {__version__}")
        raise typer.Exit


@commands.callback()
def _session(
    ctx: Context,
    url: Annotated[
        str | None,
        typer.Option(
            envvar="MODELYARD_URL",
            help="The gateway's URL; without it the one in the file of MODELYARD_CONFIG, or "
            "http://127.0.0.1:8080.",
        ),
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
    version: Annotated[  # noqa: ARG001 - its callback does it
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    ctx.obj = session = Session(url, as_json=as_json)
    ctx.call_on_close(session.close)


def app(arguments: list[str] | None = None) -> None:
    """Run a command and exit; report an error as one sentence on stderr."""
    out = Output(as_json=False)
    try:
        commands(_globals_first(sys.argv[1:] if arguments is None else arguments))
    except ServiceUnavailableError as error:
        out.error(error.detail)
        sys.exit(UNAVAILABLE)
    except ApiError as error:
        out.error(f"{error.detail} ({error.code})", error.faults)
        if (advice := _ADVICE.get(error.code)) is not None:
            out.note(advice)
        sys.exit(_exit_code(error))
    except (OperationFailed, TimeoutError) as error:
        out.error(str(error))
        sys.exit(FAILED)


def _exit_code(error: ApiError) -> int:
    return USAGE if error.code in (ErrorCode.INVALID_REQUEST, ErrorCode.INVALID_JSON) else FAILED


def _globals_first(args: list[str]) -> list[str]:
    """Move `--json` and `--url URL` to the front, so that they may follow a command too."""
    front: list[str] = []
    rest: list[str] = []
    left = iter(args)
    for one in left:
        if one == "--":
            rest += [one, *left]
        elif one == "--json" or one.startswith("--url="):
            front.append(one)
        elif one == "--url":
            front += [one, *([value] if (value := next(left, None)) is not None else [])]
        else:
            rest.append(one)
    return [*front, *rest]
