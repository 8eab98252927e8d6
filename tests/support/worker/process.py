"""`python -m tests.support.worker.process BEAT_S FENCE_S WATCHDOG_S [EXIT_S]`: a worker in a hurry.

Its lease is short, and so is the time that it has to stop, if that is given.

All else it reads from the environment, as a worker does.
"""

import asyncio
import sys

from modelyard.process import shutdown
from modelyard.process.logging import setup_logging
from worker.__main__ import run
from worker.settings import WorkerSettings

if __name__ == "__main__":
    heartbeat_interval_s, fence_s, watchdog_s, *exit_s = (float(it) for it in sys.argv[1:])
    shutdown.EXIT_S = exit_s[0] if exit_s else shutdown.EXIT_S
    setup_logging("worker", log_format="json")
    asyncio.run(
        run(
            WorkerSettings(),
            heartbeat_interval_s=heartbeat_interval_s,
            fence_s=fence_s,
            watchdog_s=watchdog_s,
        )
    )
