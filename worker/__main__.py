"""`modelyard-worker`: reads the settings, builds the clients, runs the service."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import structlog

from modelyard.broker import Broker, TopologyMismatchError
from modelyard.contract.topology import HEARTBEAT_INTERVAL_S
from modelyard.metrics.process import ProcessMetrics
from modelyard.process.garbage import collect_rarely
from modelyard.process.health.file import HealthFile
from modelyard.process.logging import setup_logging
from modelyard.process.service_manager import NOBODY, ServiceManager
from modelyard.process.settings import ServiceManagerSettings, give_up, start_process
from modelyard.process.shutdown import ProcessExit, find_error, stop_on_signals
from modelyard.process.tasks import TaskGroup
from worker.attempts.journal import AttemptJournal
from worker.engine.docker.runtime import DockerRuntime
from worker.engine.protocol import EngineUnavailableError
from worker.metrics import WorkerMetrics
from worker.model_server.client import ModelServer
from worker.model_server.http_exchange import BoundedTransport
from worker.service import Worker
from worker.session.lease import WORKER_LEASE_S, Lease
from worker.settings import WorkerSettings
from worker.watchdog.client import WATCHDOG_LEASE_S, WatchdogClient, shared_lease_file

log = structlog.get_logger(__name__)

_PROG = "modelyard-worker"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the worker until SIGTERM or SIGINT; a second one exits at once."""
    settings = start_process(_PROG, "Runs the model containers of one host.", WorkerSettings, argv)
    setup_logging(
        "worker", level=settings.log_level, log_format=settings.log_format, host_id=settings.host_id
    )
    for caution in settings.cautions:
        log.warning("settings.caution", caution=caution)
    collect_rarely()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(run(settings, manager=ServiceManagerSettings().manager()))
    except (BaseExceptionGroup, EngineUnavailableError, TopologyMismatchError) as error:
        sentence = _cannot_start(error)
        if sentence is None:
            raise
        give_up(_PROG, sentence)


async def run(
    settings: WorkerSettings,
    *,
    heartbeat_interval_s: float = HEARTBEAT_INTERVAL_S,
    fence_s: float = WORKER_LEASE_S,
    watchdog_s: float = WATCHDOG_LEASE_S,
    manager: ServiceManager = NOBODY,
) -> None:
    """Build the clients and run the service; the `manager` is told of it.

    The worker sends a heartbeat every `heartbeat_interval_s` seconds. Without a renewal the lease
    ends after `fence_s` seconds for the worker itself, and after `watchdog_s` seconds for its
    watchdog.
    """
    stop = asyncio.Event()
    lease_file = shared_lease_file(
        Path(settings.worker_runtime_dir), settings.host_id, settings.docker_url
    )
    journal = AttemptJournal(lease_file.with_suffix(".attempts") if lease_file else None)
    watchdog = WatchdogClient(
        settings.docker_url,
        host_id=settings.host_id,
        lease_s=watchdog_s,
        lease_file=lease_file,
        options=("--log-level", settings.log_level, "--log-format", settings.log_format),
    )
    health = HealthFile(settings.health_file)
    watched = ProcessMetrics("worker")
    broker = Broker(
        settings.amqp_url.get_secret_value(),
        name=f"worker {settings.host_id}",
        publish_ended=watched.publish_ended,
    )
    rules = settings.plan_rules()
    runtime = DockerRuntime(
        settings.docker_url, host_id=rules.host_id, network=rules.network, publish=rules.publish
    )

    def on_renewal(at: float) -> None:
        watchdog.renewed(at)
        health.beat()
        manager.ready()  # a lease is renewed once the host is announced

    async with AsyncExitStack() as closing:  # closes every client, even if closing another fails
        closing.enter_context(manager.watched())
        # A process that is cut off usually has not told the watchdog that it stopped in good order.
        # The watchdog then stays, and stops containers that the engine may still be starting.
        closing.enter_context(stop_on_signals(stop.set, ProcessExit()))
        closing.push_async_callback(broker.close)
        closing.push_async_callback(runtime.close)
        closing.callback(journal.close)
        transport = BoundedTransport()
        closing.callback(transport.close)
        server = ModelServer(transport)
        worker = Worker(
            settings,
            broker=broker,
            runtime=runtime,
            server=server,
            journal=journal,
            new_lease=partial(
                Lease,
                seconds=fence_s,
                renewal_interval_s=heartbeat_interval_s,
                on_renewal=on_renewal,
            ),
            metrics=WorkerMetrics(watched.registry),
        )
        async with TaskGroup() as tasks:
            scraped = tasks.create_task(watched.run(settings.worker_metrics_address))
            await worker.run(stop)
            scraped.cancel()
        manager.stopping()
        # Only after an orderly end: after a failure the engine may still execute a request that
        # this worker sent, so the watchdog has to stay until the lease ends.
        watchdog.announce_shutdown()
    watchdog.close()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - an optional dependency
    except ImportError:
        return None
    return uvloop.new_event_loop


def _cannot_start(error: BaseException) -> str | None:
    """Return a sentence for an error that an operator can repair; None for a defect of our code."""
    if mismatch := find_error(error, TopologyMismatchError):
        return str(mismatch)
    if unusable := find_error(error, EngineUnavailableError):
        return f"The Docker Engine is not usable: {unusable.message}"
    return None


if __name__ == "__main__":
    main()
