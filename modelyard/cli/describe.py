"""The commands `modelyard describe`: one thing with all that belongs to it."""

from typing import Annotated

import typer

from modelyard.cli.options import Context
from modelyard.cli.session import session_of
from modelyard.contract.states import JobState

describe = typer.Typer(no_args_is_help=True, help="Show one thing with all that belongs to it.")

_RECENT = 10
_MOST = 200


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
    jobs = yard.jobs(host_id=host, limit=_MOST).jobs
    if out.as_json:
        out.whole(found, jobs=jobs)
        return
    out.hosts([found])
    out.heading("All of it")
    out.fields(found, without={"devices", "jobs"})
    out.heading("Jobs on it")
    out.jobs(jobs)


@describe.command("model")
def describe_model(ctx: Context, model: Annotated[str, typer.Argument(help="The model.")]) -> None:
    """Show a model, what it was measured to take, and its jobs."""
    session = session_of(ctx)
    yard, out = session.yard, session.out
    found = yard.model(model)
    footprints = yard.footprints(model)
    jobs = [
        one
        for one in yard.jobs(model=model, limit=_MOST).jobs
        if one.state is not JobState.TERMINATED
    ]
    if out.as_json:
        out.whole(found, footprints=footprints, jobs=jobs)
        return
    out.fields(found)
    out.heading("Measured in memory")
    out.footprints(footprints)
    out.heading("Its jobs, but for those that are TERMINATED")
    out.jobs(jobs)
