"""The command `modelyard`: its options, its groups of commands, and its errors.

Exit codes: 0 done, 1 the operation failed or the request was refused, 2 wrong usage, 3 the
service is unavailable, 130 interrupted.
"""

import inspect
import sys
from typing import Annotated

import typer
from typer import _click as click  # typer has no public names for what it has of click
from typer._click.exceptions import UsageError
from typer.core import TyperGroup

from modelyard import __version__
from modelyard.cli import hosts, jobs, operations
from modelyard.cli.catalog import datasets, models
from modelyard.cli.dead_letters import dead_letters
from modelyard.cli.describe import describe
from modelyard.cli.exit_codes import FAILED, INTERRUPTED, UNAVAILABLE, USAGE
from modelyard.cli.keys import keys
from modelyard.cli.machine.config import config
from modelyard.cli.machine.database import database
from modelyard.cli.machine.doctor import doctor
from modelyard.cli.options import Context
from modelyard.cli.printing.output import Output
from modelyard.cli.rabbitmq import rabbitmq
from modelyard.cli.session import AmbiguousJobError, InterruptedWaitError, Session
from modelyard.client import ApiError, OperationFailed, ServiceUnavailableError
from modelyard.client.credentials import VARIABLE
from modelyard.contract.errors import SENTENCES, ErrorCode
from modelyard.contract.strict_json import JsonValue

_SERVER_FAULT = 500
"""HTTP statuses from here on are faults of the service."""

_TOO_SLOW = 408
"""The HTTP status of a request that came too slowly: nothing is wrong with how it was made."""

_URL_ADVICE = "The URL is that of --url or MODELYARD_URL."
_ADVICE: dict[str, str] = {
    ErrorCode.UNAUTHENTICATED: f"Set {VARIABLE} to a valid key of this gateway. An administrator "
    "creates one with `modelyard keys create NAME --role user`.",
    ErrorCode.BODY_TOO_LARGE: "`modelyard infer` and `modelyard temp` take a larger input as a "
    "file, with --upload.",
    ErrorCode.PRECONDITION_FAILED: "Look at what it is now; `modelyard models get NAME --etag`, or "
    "`modelyard datasets get NAME --etag`, prints the ETag that it has.",
    ErrorCode.FORBIDDEN: "Ask an administrator for a key with the scope: `modelyard keys create "
    "NAME --scope ...`.",
}

commands = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Run model containers on a fleet of plain Docker hosts.\n\n"
    "To a gateway that asks for an API key it sends the one in MODELYARD_API_KEY, or in the file "
    "that MODELYARD_API_KEY_FILE names.\n\n"
    "Exit codes: 0 done, 1 the operation failed or the request was refused, 2 wrong usage, 3 the "
    "service is unavailable, 130 interrupted.",
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


_DELETED_ELSEWHERE = {
    "model": "models delete",
    "dataset": "datasets delete",
    "dead-letter": "dead-letters delete",
    "key": "keys revoke",
}


class DeleteGroup(TyperGroup):
    """The commands `modelyard delete`; names the command that deletes what these don't."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is meant; raises `UsageError`."""
        # Completion parses resiliently, and what it says would be in the line that is typed.
        if not ctx.resilient_parsing and (command := _DELETED_ELSEWHERE.get(args[0])):
            name = args[1] if len(args) > 1 and not args[1].startswith("-") else "NAME"
            ctx.fail(f"Use `modelyard {command} {name}`.")
        return super().resolve_command(ctx, args)


delete = typer.Typer(
    cls=DeleteGroup, no_args_is_help=True, help="Delete what has ended, once nothing needs it."
)
delete.command("job")(jobs.delete)
delete.command("operation")(operations.delete)
delete.command("host")(hosts.delete)
commands.add_typer(describe, name="describe")
commands.add_typer(delete, name="delete")
commands.add_typer(models, name="models")
commands.add_typer(datasets, name="datasets")
commands.add_typer(dead_letters, name="dead-letters")
commands.add_typer(keys, name="keys")
commands.add_typer(rabbitmq, name="rabbitmq")
commands.add_typer(database, name="database")
commands.add_typer(config, name="config")


def _unwrap_help(group: typer.Typer) -> None:
    """Join the lines of each paragraph of a help, which typer does for the first one only."""
    for command in group.registered_commands:
        paragraphs = inspect.cleandoc(getattr(command.callback, "__doc__", "") or "").split("\n\n")
        command.help = "\n\n".join(" ".join(one.split()) for one in paragraphs)
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            _unwrap_help(inner.typer_instance)


_unwrap_help(commands)


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
    """Run a command and exit; report an error as one sentence on stderr, or with `--json` as JSON.

    The JSON is `{"error": {"code", "message", ...}}` on one line.
    """
    front, rest = _globals_first(sys.argv[1:] if arguments is None else arguments)
    out = Output(as_json="--json" in front)
    try:
        # Only with `--json` does typer leave it to us to print what is wrong with the usage.
        code = commands([*front, *rest], prog_name="modelyard", standalone_mode=not out.as_json)
    except UsageError as error:
        out.problem({"code": "usage", "message": error.format_message()})
        sys.exit(USAGE)
    except ServiceUnavailableError as error:
        _report(out, error, "" if error.status else _URL_ADVICE)
        sys.exit(UNAVAILABLE)
    except ApiError as error:
        _report(out, error, _advice_on(error))
        sys.exit(_exit_code(error))
    except (InterruptedWaitError, OperationFailed, TimeoutError, AmbiguousJobError) as error:
        sys.exit(_report_end(out, error))
    except OSError as error:  # stdout is a full disk, for example
        sys.exit(_report_end(out, OutputError(error)))
    sys.exit(code if isinstance(code, int) else 0)


def _advice_on(error: ApiError) -> str:
    """Return what may help after a refusal; a URL that leads elsewhere is told of as one."""
    not_a_gateway = error.code == ErrorCode.INTERNAL and error.request_id is None
    nowhere = SENTENCES[ErrorCode.NOT_FOUND]
    if not_a_gateway or (error.code == ErrorCode.NOT_FOUND and error.detail == nowhere):
        return f"{_URL_ADVICE} It is that of the gateway alone, such as http://127.0.0.1:8080."
    return _ADVICE.get(error.code, "")


def _report(out: Output, error: ApiError, advice: str) -> None:
    if out.as_json:
        found = {
            "status": error.status,
            "request_id": error.request_id,
            "errors": [one.model_dump(mode="json", exclude_none=True) for one in error.faults],
            "advice": advice,
        }
        told = {name: value for name, value in found.items() if value}
        out.problem({"code": error.code, "message": error.detail, **told})
        return
    # The same request can be found by its id in the gateway's log.
    number = f", request {error.request_id}" if error.request_id and _of_gateway(error) else ""
    out.error(f"{error.detail} ({error.code}{number})", error.faults)
    if advice:
        out.note(advice)


def _of_gateway(error: ApiError) -> bool:
    """Whether a refusal is a fault of the service, so that its operator has to look."""
    return error.status is not None and error.status >= _SERVER_FAULT


def _report_end(out: Output, error: Exception) -> int:
    """Print why a command ended without success; return its exit code."""
    exit_code, code, facts = _ending(error)
    if out.as_json:
        out.problem({"code": code, "message": str(error), **facts})
    elif isinstance(error, OperationFailed):
        operation = error.operation
        out.failure(f"operation {operation.operation_id} ended {operation.state}", operation.error)
    elif isinstance(error, InterruptedWaitError):
        out.note(f"\n{error}")
    else:
        out.error(str(error))
    return exit_code


class OutputError(Exception):
    """What a command prints could not be written."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"The output can't be written: {error.strerror or error}")


def _ending(error: Exception) -> tuple[int, str, dict[str, JsonValue]]:
    """Return the exit code, and for machines the code and the facts."""
    if isinstance(error, OperationFailed):
        operation = error.operation
        facts: dict[str, JsonValue] = {
            "operation_id": operation.operation_id,
            "state": operation.state.value,
        }
        if operation.error is None:
            return FAILED, "failed", facts
        facts["detail"] = operation.error.model_dump(mode="json")["detail"]
        return FAILED, operation.error.code, facts
    if isinstance(error, InterruptedWaitError):
        return INTERRUPTED, "interrupted", {"operation_id": error.operation_id}
    if isinstance(error, TimeoutError):
        return FAILED, "timeout", {}
    if isinstance(error, OutputError):
        return FAILED, "output", {}
    return USAGE, "ambiguous_job", {}


def _exit_code(error: ApiError) -> int:
    invalid = error.code in (ErrorCode.INVALID_REQUEST, ErrorCode.INVALID_JSON)
    return USAGE if invalid and error.status != _TOO_SLOW else FAILED


def _globals_first(args: list[str]) -> tuple[list[str], list[str]]:
    """Split off `--json` and `--url URL`, which may follow a command too."""
    front: list[str] = []
    rest: list[str] = []
    left = iter(args)
    for one in left:
        if one == "--":
            rest += [one, *left]
        elif one == "--json" or one.startswith("--url="):
            front.append(one)
        elif one == "--url":
            value = next(left, None)
            if value is None:  # else the command would be taken for it
                return [*front, one], []
            front += [one, value]
        else:
            rest.append(one)
    return front, rest
