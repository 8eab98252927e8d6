"""The commands that list, cordon and drain hosts."""

from typing import Annotated

import typer

from modelyard.cli.options import Context, a_number
from modelyard.cli.session import session_of

HostId = Annotated[str, typer.Argument(help="The host.")]


def list_hosts(ctx: Context) -> None:
    """List the hosts."""
    session = session_of(ctx)
    session.out.hosts(session.yard.hosts())


def cordon(ctx: Context, host_id: HostId) -> None:
    """Place no new jobs on a host; the jobs on it go on. Ends a drain."""
    session = session_of(ctx)
    session.out.one(session.yard.cordon(host_id))


def uncordon(ctx: Context, host_id: HostId) -> None:
    """Allow new jobs on a host again. Ends a drain."""
    session = session_of(ctx)
    session.out.one(session.yard.uncordon(host_id))


def drain(
    ctx: Context,
    host_id: HostId,
    *,
    move: Annotated[bool, typer.Option("--move", help="Move live jobs to other hosts.")] = False,
    deadline: Annotated[
        float | None,
        typer.Option(
            callback=a_number,
            help="Seconds from now, up to 604800. Then operations that still run are ended as "
            "FAILED, and jobs are terminated. Without a deadline they may finish.",
        ),
    ] = None,
) -> None:
    """Empty a host: it gets no new jobs, and its operations finish.

    The command returns at once; `modelyard hosts` shows when the drain is done. Draining a host
    again replaces both options.
    """
    session = session_of(ctx)
    session.out.one(session.yard.drain(host_id, move=move, deadline_s=deadline))


def delete(ctx: Context, host_id: HostId) -> None:
    """Delete a host that is LOST and will not come back; if it does, it is a new host."""
    session_of(ctx).yard.delete_host(host_id)
