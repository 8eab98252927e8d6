"""The commands that submit requests on jobs, and `modelyard jobs`."""

from collections.abc import Callable
from mimetypes import guess_type
from pathlib import Path
from typing import Annotated

import typer

from modelyard.cli.documents import document, file_content, mapping, value_of
from modelyard.cli.exit_codes import FAILED
from modelyard.cli.options import (
    Context,
    File,
    Key,
    Limit,
    Metadata,
    OfModel,
    OnHost,
    Priority,
    QueueTimeout,
    Timeout,
    Wait,
    options_of,
)
from modelyard.cli.session import Session, finish, jobs_listed, session_of, submitted
from modelyard.client.endpoints import InferenceOptions, JobFilters, request
from modelyard.contract.capacity.sizes import size_text
from modelyard.contract.content.media_types import UNKNOWN_TYPE
from modelyard.contract.states import JobState, Verb
from modelyard.contract.strict_json import JsonValue
from modelyard.contract.views import DryRunOutcome

Job = Annotated[str, typer.Argument(help="The job.")]
Model = Annotated[str, typer.Option("--model", "-m", help="A model of the catalog.")]
Dataset = Annotated[str | None, typer.Option("--dataset", "-d", help="A dataset of the catalog.")]
Input = Annotated[str | None, typer.Option(help="JSON, @FILE, or - for standard input.")]
Upload = Annotated[
    Path | None,
    typer.Option(
        help="A file that is uploaded as the input, of any type and up to 64 MiB; the model gets "
        "it as it is.",
        dir_okay=False,
        exists=True,
    ),
]
UploadType = Annotated[
    str | None,
    typer.Option(help="The media type of that file; by the ending of its name if not given."),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Make nothing; say what would become of the request, and why it waits."
    ),
]


def given_input(
    session: Session,
    text: str | None,
    upload: Path | None,
    upload_type: str | None,
    options: InferenceOptions,
) -> JsonValue:
    """Return the input that was given as JSON; upload one that is a file, and put its id in."""
    if upload is None:
        if upload_type is not None:
            message = "it is the type of --upload, which is not given"
            raise typer.BadParameter(message, param_hint="--upload-type")
        return None if text is None else value_of(text)
    if text is not None:
        raise typer.BadParameter("give --input or --upload, not both", param_hint="--upload")
    media_type = upload_type or guess_type(upload.name)[0] or UNKNOWN_TYPE
    stored = session.yard.upload(file_content(upload), media_type)
    session.out.note(f"input {stored.input_id} ({media_type}, {size_text(stored.size)})")
    options["input_id"] = stored.input_id
    return None


def submit(
    ctx: Context,
    file: File,
    *,
    wait: Wait = False,
    dry_run: DryRun = False,
    key: Key = None,
) -> None:
    """Submit the request of a file, or a list of up to 1,000 of them.

    `--wait` and `--dry-run` take no list. The key of a list gives each request a key with its place
    in the list.
    """
    session = session_of(ctx)
    body = document(file)
    if dry_run:
        if wait or isinstance(body, list):
            raise typer.BadParameter("it takes neither a list nor --wait", param_hint="--dry-run")
        found = session.yard.dry_run(mapping(body), idempotency_key=key)
        session.out.dry_run(found)
        if found.outcome is DryRunOutcome.REJECTED:
            raise typer.Exit(FAILED)
        return
    if not isinstance(body, list):
        submitted(session, mapping(body), wait=wait, key=key)
        return
    if wait:
        raise typer.BadParameter("--wait takes no list", param_hint="--wait")
    requests = [mapping(one, place) for place, one in enumerate(body)]
    items = session.yard.submit_batch(requests, idempotency_key=key)
    session.out.batch(items)
    if any(item.problem for item in items):
        raise typer.Exit(FAILED)


def create(  # noqa: PLR0913 - options
    ctx: Context,
    job: Job,
    *,
    model: Model,
    dataset: Dataset = None,
    priority: Priority = None,
    timeout: Timeout = None,
    queue_timeout: QueueTimeout = None,
    metadata: Metadata = None,
    wait: Wait = False,
    key: Key = None,
) -> None:
    """Place a job on a host and create its container."""
    options = options_of(priority, timeout, queue_timeout, metadata)
    body = request(Verb.DEPLOY_CREATE, job, options, model=model, dataset=dataset)
    submitted(session_of(ctx), body, wait=wait, key=key)


def _on_job(verb: Verb, purpose: str) -> Callable[..., None]:
    """Return the command of a verb that needs nothing but its job; `purpose` is its help."""

    def command(  # noqa: PLR0913 - options
        ctx: Context,
        job: Job,
        *,
        priority: Priority = None,
        timeout: Timeout = None,
        queue_timeout: QueueTimeout = None,
        metadata: Metadata = None,
        wait: Wait = False,
        key: Key = None,
    ) -> None:
        options = options_of(priority, timeout, queue_timeout, metadata)
        submitted(session_of(ctx), request(verb, job, options), wait=wait, key=key)

    command.__doc__ = purpose
    return command


load = _on_job(Verb.DEPLOY_LOAD, "Bring a job's model into memory.")
unload = _on_job(Verb.DEPLOY_UNLOAD, "Take a job's model out of memory.")
terminate = _on_job(Verb.TERMINATE, "Remove a job's container.")


def infer(  # noqa: PLR0913 - options
    ctx: Context,
    job: Annotated[str | None, typer.Argument(help="The job; or give --model.")] = None,
    *,
    input: Input = None,  # noqa: A002 - the word of the API
    upload: Upload = None,
    upload_type: UploadType = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Ask whichever job of this model is best placed."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", "-d", help="With --model: only jobs that have this dataset."),
    ] = None,
    priority: Priority = None,
    timeout: Timeout = None,
    queue_timeout: QueueTimeout = None,
    metadata: Metadata = None,
    wait: Wait = False,
    key: Key = None,
) -> None:
    """Send an input to a job's model, or to any job of a model; --wait prints the answer."""
    if (job is None) == (model is None):
        raise typer.BadParameter("give a job or --model, and not both", param_hint="JOB")
    if job is not None and dataset is not None:
        raise typer.BadParameter("a job has its dataset", param_hint="--dataset")
    session = session_of(ctx)
    options = options_of(priority, timeout, queue_timeout, metadata)
    value = given_input(session, input, upload, upload_type, options)
    if value is None and "input_id" not in options:
        message = "give --input or --upload" if input is None else "null is no input"
        raise typer.BadParameter(message, param_hint="--input")
    if job is not None:
        body = request(Verb.INFER, job, options, input=value)
        submitted(session, body, wait=wait, key=key)
    elif model is not None:
        options["idempotency_key"] = key
        accepted = session.yard.infer_model(model, value, dataset=dataset, **options)
        finish(session, accepted, wait=wait)


def temp(  # noqa: PLR0913 - options
    ctx: Context,
    job: Job,
    *,
    model: Model,
    dataset: Dataset = None,
    input: Input = None,  # noqa: A002 - the word of the API
    upload: Upload = None,
    upload_type: UploadType = None,
    priority: Priority = None,
    timeout: Timeout = None,
    queue_timeout: QueueTimeout = None,
    metadata: Metadata = None,
    wait: Wait = False,
    key: Key = None,
) -> None:
    """Run a model once and remove it again; --wait prints the answer."""
    session = session_of(ctx)
    options = options_of(priority, timeout, queue_timeout, metadata)
    given = given_input(session, input, upload, upload_type, options)
    body = request(Verb.TEMP, job, options, model=model, dataset=dataset, input=given)
    submitted(session, body, wait=wait, key=key)


def list_jobs(
    ctx: Context,
    state: Annotated[
        JobState | None, typer.Option(help="Only those in this state.", case_sensitive=False)
    ] = None,
    model: OfModel = None,
    host: OnHost = None,
    limit: Limit = 50,
) -> None:
    """List jobs, newest first."""
    session = session_of(ctx)
    filters = JobFilters(state=state, model=model, host_id=host, limit=limit)
    found, more = jobs_listed(session, filters)
    session.out.jobs(found)
    session.out.more(more)


def delete(ctx: Context, job: Job) -> None:
    """Delete a job that is TERMINATED, FAILED or LOST; its operations stay."""
    session_of(ctx).yard.delete_job(job)
