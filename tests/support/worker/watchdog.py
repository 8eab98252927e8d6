"""`python -m tests.support.worker.watchdog CHECK_INTERVAL_S ...`: a watchdog that looks more often.

What follows CHECK_INTERVAL_S is what `python -m worker.watchdog.process` takes.
"""

import sys

from worker.watchdog import process

if __name__ == "__main__":
    process.CHECK_INTERVAL_S = float(sys.argv[1])
    process.main(sys.argv[2:])
