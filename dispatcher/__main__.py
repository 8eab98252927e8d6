"""Start a dispatcher: `modelyard-dispatcher`, or `python -m dispatcher`."""

import asyncio
from collections.abc import Sequence

import structlog
import uvloop

from dispatcher.metrics import DispatcherMetrics
from dispatcher.service import Dispatcher
from dispatcher.settings import DispatcherSettings
from modelyard.broker import Broker, TopologyMismatchError
from modelyard.metrics.process import ProcessMetrics, StoreMetrics
from modelyard.process.garbage import collect_rarely
from modelyard.process.logging import setup_logging
from modelyard.process.service_manager import ServiceManager
from modelyard.process.settings import (
    EXIT_WRONG_SETTINGS,
    ServiceManagerSettings,
    give_up,
    start_process,
)
from modelyard.process.shutdown import ProcessExit, find_error, stop_on_signals
from modelyard.process.tasks import TaskGroup, unending
from modelyard.store import Store

log = structlog.get_logger(__name__)

PROG = "modelyard-dispatcher"


def main(argv: Sequence[str] | None = None) -> None:
    """Run a dispatcher until SIGTERM or SIGINT; a second signal exits at once."""
    purpose = "Records requests, places them on hosts, records the workers' reports."
    settings = start_process(PROG, purpose, DispatcherSettings, argv)
    setup_logging("dispatcher", level=settings.log_level, log_format=settings.log_format)
    collect_rarely()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(settings, ServiceManagerSettings().manager()))
    except Exception as error:
        mismatch = find_error(error, TopologyMismatchError)
        if mismatch is None:
            raise
        give_up(PROG, str(mismatch))


async def _run(settings: DispatcherSettings, manager: ServiceManager) -> None:
    watched = ProcessMetrics("dispatcher")
    try:
        store = Store(
            settings.mongo_url.get_secret_value(),
            name="dispatcher",
            call_ended=StoreMetrics(watched.registry).call_ended,
        )
    except ValueError as error:
        give_up(PROG, str(error), code=EXIT_WRONG_SETTINGS)
    broker = Broker(
        settings.amqp_url.get_secret_value(),
        name="dispatcher",
        publish_ended=watched.publish_ended,
    )
    metrics = DispatcherMetrics(watched.registry)
    dispatcher = Dispatcher(settings, store, broker, metrics, on_ready=manager.ready)
    work = asyncio.create_task(_work(dispatcher, watched, settings.dispatcher_metrics_address))
    process = ProcessExit()
    code = 1
    # RabbitMQ requeues the messages that are not settled yet.
    with manager.watched(), stop_on_signals(work.cancel, process):
        try:
            await work
        except asyncio.CancelledError:
            log.info("dispatcher.stopped")
            code = 0
        finally:
            manager.stopping()
            process.begin()
            await broker.close()
            store.close()
            process.soon(code)


async def _work(dispatcher: Dispatcher, watched: ProcessMetrics, address: str) -> None:
    async with TaskGroup() as tasks:
        tasks.create_task(unending(watched.run(address)))
        await dispatcher.run()


if __name__ == "__main__":
    main()
