"""`python -m tests.unit.worker_process BEAT_S FENCE_S WATCHDOG_S`: a worker with a short lease.

All else it reads from the environment, as a worker does.
"""

import asyncio
import sys

from modelyard.telemetry import setup_logging
from worker.__main__ import run
from worker.settings import WorkerSettings

if __name__ == "__main__":
    beat_s, fence_s, watchdog_s = (float(it) for it in sys.argv[1:])
    setup_logging("worker", log_format="json")
    asyncio.run(run(WorkerSettings(), beat_s=beat_s, fence_s=fence_s, watchdog_s=watchdog_s))
