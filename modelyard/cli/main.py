"""The command line: `modelyard`.

Exit codes: 0 done, 1 the operation failed or the request was refused, 2 wrong usage, 3 the
service is unavailable.
"""

import re
import sys
from typing import Annotated

import typer

from modelyard import __version__
from modelyard.cli.catalog import datasets, models
from modelyard.cli.dead_letters import dead_letters
from modelyard.cli.keys import keys
from modelyard.cli.output import Output
from modelyard.cli.rabbitmq import rabbitmq
from modelyard.cli.session import (
    Context,
    File,
    Limit,
    Session,
    finish,
    followed,
    json_file,
    json_text,
    mapping,
    session_of,
    submitted,
    until_end,
)
from modelyard.client import ApiError, OperationFailed, ServiceUnavailableError
from modelyard.client.credentials import VARIABLE
from modelyard.client.endpoints import OperationFilters, RequestOptions, request
from modelyard.contract.errors import ErrorCode
from modelyard.contract.ids import OPERATION_ID_PATTERN
from modelyard.contract.states import JobState, OperationState, Verb

FAILED, USAGE, UNAVAILABLE = 1, 2, 3

_WHAT_TO_DO: dict[str, str] = {
    ErrorCode.UNAUTHENTICATED: f"Set {VARIABLE} to a valid key of this gateway. An administrator "
    "makes one with `modelyard keys create NAME --role user`.",
    ErrorCode.FORBIDDEN: "Ask an administrator for a key that may do it: `modelyard keys create "
    "NAME --scope ...`.",
}

commands = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Run model containers on a fleet of plain Docker hosts.\n\n"
    "Where the gateway asks who you are, it takes the API key in MODELYARD_API_KEY.\n\n"
    "Exit codes: 0 done, 1 the operation failed or the request was refused, 2 wrong usage, 3 the "
    "service is unavailable.",
)
commands.add_typer(models, name="models")
commands.add_typer(datasets, name="datasets")
commands.add_typer(dead_letters, name="dead-letters")
commands.add_typer(keys, name="keys")
commands.add_typer(rabbitmq, name="rabbitmq")

Job = Annotated[str, typer.Argument(help="The job.")]
Operation = Annotated[str, typer.Argument(help="The operation.")]
HostId = Annotated[str, typer.Argument(help="The host.")]
Model = Annotated[str, typer.Option("--model", "-m", help="A model of the catalog.")]
Dataset = Annotated[str | None, typer.Option("--dataset", "-d", help="A dataset of the catalog.")]
Input = Annotated[str | None, typer.Option(help="JSON, @FILE, or - for standard input.")]
Wait = Annotated[bool, typer.Option("--wait", "-w", help="Show the phases until it has ended.")]
Timeout = Annotated[
    float | None,
    typer.Option(
        help="Seconds to wait at the most; the operation goes on. Without, until it has ended."
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        help="An idempotency key, 1 to 255 printable characters without spaces: the same key is "
        "the same operation. Without one, each call is another."
    ),
]
OfHost = Annotated[str | None, typer.Option(help="Only those on this host.")]
Priority = Annotated[int | None, typer.Option(min=0, max=9, help="Higher goes first.")]


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer gives it so
    if wanted:
        typer.echo(f"modelyard {__version__}")
        raise typer.Exit


@commands.callback()
def _session(
    ctx: Context,
    url: Annotated[
        str, typer.Option(envvar="MODELYARD_URL", help="The gateway's URL.")
    ] = "http://127.0.0.1:8080",
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
    version: Annotated[  # noqa: ARG001 - its callback does it
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    try:
        session = Session(url, as_json=as_json)
    except ValueError as error:
        hint = VARIABLE if VARIABLE in str(error) else "--url"
        raise typer.BadParameter(str(error), param_hint=hint) from error
    ctx.obj = session
    ctx.call_on_close(session.yard.close)


# --- submitting ---


@commands.command()
def submit(ctx: Context, file: File, *, wait: Wait = False, key: Key = None) -> None:
    """Submit the request of a JSON file, or a list of up to 1,000 of them.

    A list can't be waited for, and its key counts for each request with its place in the list.
    """
    session = session_of(ctx)
    body = json_file(file)
    if not isinstance(body, list):
        submitted(session, mapping(body), wait=wait, key=key)
        return
    if wait:
        raise typer.BadParameter("a list can't be waited for", param_hint="--wait")
    items = session.yard.submit_batch([mapping(one) for one in body], idempotency_key=key)
    session.out.batch(items)
    if any(item.problem for item in items):
        raise typer.Exit(FAILED)


@commands.command()
def create(  # noqa: PLR0913 - options
    ctx: Context,
    job: Job,
    *,
    model: Model,
    dataset: Dataset = None,
    priority: Priority = None,
    wait: Wait = False,
    key: Key = None,
) -> None:
    """Place a job on a host and create its container; with timeouts or metadata: `submit`."""
    made = request(Verb.DEPLOY_CREATE, job, _options(priority), model=model, dataset=dataset)
    submitted(session_of(ctx), made, wait=wait, key=key)


@commands.command()
def load(ctx: Context, job: Job, *, wait: Wait = False, key: Key = None) -> None:
    """Bring a job's model into memory."""
    submitted(session_of(ctx), request(Verb.DEPLOY_LOAD, job, {}), wait=wait, key=key)


@commands.command()
def infer(
    ctx: Context,
    job: Job,
    *,
    input: Annotated[str, typer.Option(help="JSON, @FILE, or - for standard input.")],  # noqa: A002
    wait: Wait = False,
    key: Key = None,
) -> None:
    """Send an input to a job's model; with --wait its answer is printed.

    With timeouts, a priority or metadata: `submit`.
    """
    made = request(Verb.INFER, job, {}, input=json_text(input))
    submitted(session_of(ctx), made, wait=wait, key=key)


@commands.command()
def unload(ctx: Context, job: Job, *, wait: Wait = False, key: Key = None) -> None:
    """Take a job's model out of memory."""
    submitted(session_of(ctx), request(Verb.DEPLOY_UNLOAD, job, {}), wait=wait, key=key)


@commands.command()
def terminate(ctx: Context, job: Job, *, wait: Wait = False, key: Key = None) -> None:
    """Remove a job's container."""
    submitted(session_of(ctx), request(Verb.TERMINATE, job, {}), wait=wait, key=key)


@commands.command()
def temp(  # noqa: PLR0913 - options
    ctx: Context,
    job: Job,
    *,
    model: Model,
    dataset: Dataset = None,
    input: Input = None,  # noqa: A002 - the word of the API
    priority: Priority = None,
    wait: Wait = False,
    key: Key = None,
) -> None:
    """Run a model once and remove it again; with --wait its answer is printed.

    With timeouts or metadata: `submit`.
    """
    given = None if input is None else json_text(input)
    options = _options(priority)
    made = request(Verb.TEMP, job, options, model=model, dataset=dataset, input=given)
    submitted(session_of(ctx), made, wait=wait, key=key)


@commands.command()
def cancel(ctx: Context, operation: Operation, *, wait: Wait = False) -> None:
    """Ask for the end of an operation; with --wait until it is cancelled."""
    session = session_of(ctx)
    view = session.yard.cancel(operation)
    if wait:
        view = until_end(session, operation, None)
        if view.state is not OperationState.CANCELLED:
            raise OperationFailed(view)
    session.out.one(view)


@commands.command()
def retry(ctx: Context, operation: Operation, *, wait: Wait = False, key: Key = None) -> None:
    """Submit the request of an operation that ended without success again.

    It is a new operation. With --wait its phases are shown, and its answer is printed.
    """
    session = session_of(ctx)
    finish(session, session.yard.retry(operation, idempotency_key=key), wait=wait)


# --- status ---


@commands.command()
def status(ctx: Context, id: Annotated[str, typer.Argument(help="An operation or a job.")]) -> None:  # noqa: A002
    """Show an operation, or a job."""
    session = session_of(ctx)
    if re.fullmatch(OPERATION_ID_PATTERN, id):
        session.out.one(session.yard.operation(id))
    else:
        session.out.one(session.yard.job(id))


@commands.command()
def result(ctx: Context, operation: Operation) -> None:
    """Print an operation's result."""
    session = session_of(ctx)
    session.out.value(session.yard.result(operation))


@commands.command()
def wait(ctx: Context, operation: Operation, timeout: Timeout = None) -> None:
    """Show an operation's phases until it has ended."""
    session = session_of(ctx)
    session.out.one(followed(session, operation, timeout))


@commands.command()
def jobs(
    ctx: Context,
    state: Annotated[JobState | None, typer.Option(help="Only those in this state.")] = None,
    host: OfHost = None,
    limit: Limit = 50,
) -> None:
    """List jobs, newest first."""
    session = session_of(ctx)
    session.out.jobs(session.yard.jobs(state=state, host_id=host, limit=limit).jobs)


@commands.command()
def operations(
    ctx: Context,
    *,
    state: Annotated[OperationState | None, typer.Option(help="Only those in this state.")] = None,
    job: Annotated[str | None, typer.Option(help="Only those of this job.")] = None,
    host: OfHost = None,
    verb: Annotated[Verb | None, typer.Option(help="Only those with this verb.")] = None,
    limit: Limit = 50,
) -> None:
    """List operations, newest first."""
    session = session_of(ctx)
    filters = OperationFilters(
        state=state, job_id=job, host_id=host, operation_type=verb, limit=limit
    )
    session.out.operations(session.yard.operations(**filters).operations)


@commands.command()
def hosts(ctx: Context) -> None:
    """List the hosts."""
    session = session_of(ctx)
    session.out.hosts(session.yard.hosts())


@commands.command()
def cordon(ctx: Context, host_id: HostId) -> None:
    """Place nothing new on a host; what is there goes on. Ends a drain."""
    session = session_of(ctx)
    session.out.one(session.yard.cordon(host_id))


@commands.command()
def uncordon(ctx: Context, host_id: HostId) -> None:
    """Place on a host again. Ends a drain."""
    session = session_of(ctx)
    session.out.one(session.yard.uncordon(host_id))


@commands.command()
def drain(
    ctx: Context,
    host_id: HostId,
    *,
    move: Annotated[bool, typer.Option("--move", help="Bring live jobs to other hosts.")] = False,
    deadline: Annotated[
        float | None,
        typer.Option(
            help="Seconds from now, up to 604800, until what is left is ended: what runs FAILED, "
            "jobs are terminated. Without, it may finish."
        ),
    ] = None,
) -> None:
    """Empty a host: nothing new is placed there, and what is there finishes.

    It returns at once; `modelyard hosts` shows when it is done. Repeated, it sets both options
    anew.
    """
    session = session_of(ctx)
    session.out.one(session.yard.drain(host_id, move=move, deadline_s=deadline))


def app(arguments: list[str] | None = None) -> None:
    """Run a command and exit; whatever goes wrong is one sentence on stderr."""
    out = Output(as_json=False)
    try:
        commands(_globals_first(sys.argv[1:] if arguments is None else arguments))
    except ServiceUnavailableError as error:
        out.error(error.detail)
        sys.exit(UNAVAILABLE)
    except ApiError as error:
        out.error(f"{error.detail} ({error.code})", error.faults)
        if (what_to_do := _WHAT_TO_DO.get(error.code)) is not None:
            out.note(what_to_do)
        sys.exit(_exit_code(error))
    except (OperationFailed, TimeoutError) as error:
        out.error(str(error))
        sys.exit(FAILED)


def _options(priority: int | None) -> RequestOptions:
    return RequestOptions() if priority is None else RequestOptions(priority=priority)


def _exit_code(error: ApiError) -> int:
    return USAGE if error.code in (ErrorCode.INVALID_REQUEST, ErrorCode.INVALID_JSON) else FAILED


def _globals_first(args: list[str]) -> list[str]:
    """Move `--json` and `--url URL` to the front, so that they may stand behind a command too."""
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
