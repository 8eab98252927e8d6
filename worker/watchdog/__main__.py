"""`python -m worker.watchdog`: a watchdog that stands beside a worker in a container.

Starts with the same settings as its worker.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from modelyard.process.health.file import HealthFile
from modelyard.process.logging import setup_logging
from modelyard.process.settings import give_up, start_process
from modelyard.process.shutdown import ProcessExit, stop_on_signals
from worker.engine.docker.runtime import DockerRuntime
from worker.settings import WorkerSettings
from worker.watchdog.client import WATCHDOG_LEASE_S, shared_lease_file
from worker.watchdog.standing import StandingWatchdog

_PROG = "worker.watchdog"


def main(argv: Sequence[str] | None = None) -> None:
    """Watch until SIGTERM or SIGINT."""
    purpose = "Stops containers that must not outlive the lease of this host's worker."
    settings = start_process(_PROG, purpose, WorkerSettings, argv)
    setup_logging(
        "watchdog",
        level=settings.log_level,
        log_format=settings.log_format,
        host_id=settings.host_id,
    )
    folder = Path(settings.worker_runtime_dir)
    lease_file = shared_lease_file(folder, settings.host_id, settings.docker_url)
    if lease_file is None:
        give_up(_PROG, f"{folder} has to be the worker's MODELYARD_WORKER_RUNTIME_DIR.")
    asyncio.run(_watch(settings, lease_file))


async def _watch(settings: WorkerSettings, lease_file: Path) -> None:
    rules = settings.plan_rules()
    runtime = DockerRuntime(
        settings.docker_url, host_id=rules.host_id, network=rules.network, publish=rules.publish
    )
    watchdog = StandingWatchdog(
        runtime,
        lease_s=WATCHDOG_LEASE_S,
        lease_file=lease_file,
        on_round=HealthFile(settings.health_file).beat,
    )
    stop = asyncio.Event()
    with stop_on_signals(stop.set, ProcessExit()):
        try:
            await watchdog.run(stop)
        finally:
            await runtime.close()


if __name__ == "__main__":
    main()
