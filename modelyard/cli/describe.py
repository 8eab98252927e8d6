"""The commands `modelyard describe`: one thing with all that belongs to it."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from modelyard.cli.options import Context
from modelyard.cli.session import Session, jobs_listed, session_of
from modelyard.client.endpoints import JobFilters
from modelyard.contract.states import JobState
from modelyard.contract.views import JobView

describe = typer.Typer(no_args_is_help=True, help="Show one thing with all that belongs to it.")

_RECENT = 10
_NEVER = datetime.min.replace(tzinfo=UTC)
_MOST = 1_000
"""Jobs of one state that are shown."""


@describe.command("job")
def describe_job(ctx: Context, job: Annotated[str, typer.Argument(help="The job.")]) -> None:
    """Show a job and its latest operations."""
    session = session_of(ctx)
    yard, out = session.yard, session.out
    found = yard.job(job)
    operations = yard.operations(job_id=job, limit=_RECENT).operations
    if out.as_json:
        out.whole(found, operations=operations)
        return
    out.fields(found)
    out.heading(f"Its latest operations ({_RECENT} at most)")
    out.operations(operations)


@describe.command("host")
def describe_host(ctx: Context, host: Annotated[str, typer.Argument(help="The host.")]) -> None:
    """Show a host with its devices, and the jobs on it."""
    session = session_of(ctx)
    yard, out = session.yard, session.out
    found = yard.host(host)
    jobs, more = jobs_listed(session, JobFilters(host_id=host, limit=_MOST))
    if out.as_json:
        out.whole(found, jobs=jobs)
    else:
        out.hosts([found])
        out.heading("All of it")
        out.fields(found, without={"devices", "jobs"})
        out.heading("Jobs on it")
        out.jobs(jobs)
    _more(session, "--host", host, left_out=more is not None)


@describe.command("model")
def describe_model(ctx: Context, model: Annotated[str, typer.Argument(help="The model.")]) -> None:
    """Show a model, what it was measured to take, and its jobs."""
    session = session_of(ctx)
    yard, out = session.yard, session.out
    found = yard.model(model)
    footprints = yard.footprints(model)
    jobs, left_out = _not_terminated(session, model)
    if out.as_json:
        out.whole(found, footprints=footprints, jobs=jobs)
    else:
        out.fields(found)
        out.heading("Measured in memory")
        out.footprints(footprints)
        out.heading("Its jobs, but for those that are TERMINATED")
        out.jobs(jobs)
    _more(session, "--model", model, left_out=left_out)


def _not_terminated(session: Session, model: str) -> tuple[list[JobView], bool]:
    """Return the jobs of a model, newest first, and whether some were left out.

    They are asked for by state: a model may have any number of TERMINATED ones, of `TEMP`.
    """
    parts = [
        jobs_listed(session, JobFilters(model=model, state=state, limit=_MOST))
        for state in JobState
        if state is not JobState.TERMINATED
    ]
    found = {one.job_id: one for jobs, _ in parts for one in jobs}  # its state may have changed
    newest_first = sorted(found.values(), key=lambda one: one.created_at or _NEVER, reverse=True)
    return newest_first, any(more is not None for _, more in parts)


def _more(session: Session, option: str, value: str, *, left_out: bool) -> None:
    if left_out:
        session.out.note(
            f"There are more: `modelyard jobs {option} {value}` with --state and a higher --limit "
            "lists them."
        )
