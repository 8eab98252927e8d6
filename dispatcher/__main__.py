"""Start a dispatcher: `modelyard-dispatcher`, or `python -m dispatcher`."""

import asyncio
import signal
import sys
from typing import Annotated

import structlog
import typer
import uvloop
from pydantic import ValidationError

from dispatcher.service import Dispatcher
from dispatcher.settings import Settings
from modelyard import __version__
from modelyard.broker import Broker, TopologyMismatchError
from modelyard.store import Store
from modelyard.telemetry import setup_logging

log = structlog.get_logger(__name__)


def main() -> None:
    """Run the command line."""
    typer.run(_command)


def _command(
    *, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """Take requests in, place them on hosts, record what the hosts report.

    Settings come from the environment: MODELYARD_AMQP_URL, MODELYARD_MONGO_URL,
    MODELYARD_DISPATCHER_DEFAULT_TIMEOUT_S, MODELYARD_DISPATCHER_SWEEP_INTERVAL_S,
    MODELYARD_DISPATCHER_MAX_ATTEMPTS, MODELYARD_LOG_LEVEL, MODELYARD_LOG_FORMAT.
    """
    if version:
        typer.echo(f"modelyard-dispatcher {__version__}")
        return
    try:
        settings = Settings()
    except ValidationError as error:
        for one in error.errors():
            name = "_".join(str(step) for step in one["loc"]).upper()
            typer.echo(f"MODELYARD_{name}: {one['msg']}", err=True)
        raise typer.Exit(2) from None
    setup_logging("dispatcher", level=settings.log_level, log_format=settings.log_format)
    sys.exit(uvloop.run(_run(settings)))


async def _run(settings: Settings) -> int:
    store = Store(settings.mongo_url, name="dispatcher")
    broker = Broker(settings.amqp_url, name="dispatcher")
    work = asyncio.create_task(Dispatcher(settings, store, broker).run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Whatever is unsettled then goes back to its queue: nothing needs to be finished first.
        loop.add_signal_handler(number, work.cancel)
    try:
        await work
    except asyncio.CancelledError:
        log.info("dispatcher.stopped")
        return 0
    except TopologyMismatchError as error:
        log.error("dispatcher.topology_mismatch", error=str(error))  # noqa: TRY400 - a user's mistake
        return 3
    finally:
        await broker.close()
        store.close()
    return 0


if __name__ == "__main__":
    main()
