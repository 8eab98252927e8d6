"""`python -m gateway`: read the settings, wire the gateway, serve until SIGTERM or SIGINT."""

import asyncio
import os
import socket
from collections.abc import Sequence
from functools import partial

import structlog
import uvloop

from gateway.app import create_app
from gateway.http.listener import connections_within_file_limit
from gateway.http.server import GatewayServer, listen
from gateway.monitoring.access_log import refused
from gateway.monitoring.metrics import GatewayMetrics
from gateway.service import Gateway, GatewayLimits
from gateway.settings import AuthMethod, GatewaySettings
from modelyard import __version__
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
from modelyard.process.shutdown import ProcessExit, find_error
from modelyard.process.tasks import TaskGroup
from modelyard.store import Store

log = structlog.get_logger(__name__)

STORE_TIMEOUT_S = 2.0
PROG = "modelyard-gateway"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the gateway until SIGTERM or SIGINT."""
    settings = start_process(PROG, "Modelyard's HTTP API.", GatewaySettings, argv)
    setup_logging("gateway", level=settings.log_level, log_format=settings.log_format)
    collect_rarely()
    most = connections_within_file_limit(settings.gateway_max_connections)
    settings = settings.model_copy(update={"gateway_max_connections": most})
    try:
        listener = listen(
            settings.gateway_host, settings.gateway_port, shared=settings.gateway_share_port
        )
    except OSError as error:
        place = f"{settings.gateway_host}:{settings.gateway_port}"
        give_up(PROG, f"The gateway can't listen on {place}: {_reason(error)}.")
    process = ProcessExit()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings, listener, process, ServiceManagerSettings().manager()))
    except Exception as error:
        mismatch = find_error(error, TopologyMismatchError)
        if mismatch is None:
            raise
        give_up(PROG, str(mismatch))


async def _serve(
    settings: GatewaySettings,
    listener: socket.socket,
    process: ProcessExit,
    manager: ServiceManager,
) -> None:
    watched = ProcessMetrics("gateway")
    metrics = GatewayMetrics(watched.registry)
    try:
        store = Store(
            settings.mongo_url.get_secret_value(),
            name="gateway",
            timeout_s=STORE_TIMEOUT_S,
            call_ended=StoreMetrics(watched.registry).call_ended,
        )
    except ValueError as error:
        give_up(PROG, str(error), code=EXIT_WRONG_SETTINGS)
    broker = Broker(
        settings.amqp_url.get_secret_value(), name="gateway", publish_ended=watched.publish_ended
    )
    gateway = Gateway(
        store,
        broker,
        limits=GatewayLimits(
            request_bytes=settings.max_request_bytes,
            batch_bytes=settings.max_batch_bytes,
            input_bytes=settings.max_input_bytes,
            # The other half of the connections stays free for requests that are answered at once.
            waiting=settings.gateway_max_connections // 2,
        ),
        with_keys=AuthMethod.KEYS in settings.auth,
        metrics=metrics,
    )
    server = GatewayServer(
        create_app(gateway, settings.web_rules, access_log=settings.gateway_access_log),
        on_stop=gateway.waiters.close,
        process=process,
        limits=settings.connection_limits,
        on_refused=partial(refused, metrics, with_line=settings.gateway_access_log),
    )
    metrics.watch_connections(lambda: len(server.server_state.connections))
    host, port = listener.getsockname()[:2]
    log.info("gateway.listening", host=host, port=port, version=__version__)
    code = 1
    try:
        with manager.watched():
            async with TaskGroup() as tasks:
                running = tasks.create_task(gateway.run())
                scraped = tasks.create_task(watched.run(settings.gateway_metrics_address))
                manager.ready()  # the kernel takes connections in from here on
                await server.serve(sockets=[listener])
                running.cancel()
                scraped.cancel()
        code = 0
    finally:
        manager.stopping()
        process.begin()
        await gateway.close()
        process.soon(code)
    log.info("gateway.stopped")


def _reason(error: OSError) -> str:
    # asyncio and socket add the address to `strerror`, which the sentence has already.
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)


if __name__ == "__main__":
    main()
