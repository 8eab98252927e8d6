"""The goal for what one inference waits for, which a test counts and nothing here can time.

The bounds are those that the test itself holds to, and the test is run.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from bench.report import Row
from deploy.local.layout import ROOT
from tests.statemachine.test_one_inference import DURABLE_WAITS_IN_SERIES, READS_IN_SERIES

if TYPE_CHECKING:
    from collections.abc import Sequence

FILE = "tests/statemachine/test_one_inference.py"
TEST = "test_it_waits_for_few_durable_writes_and_for_no_reads_one_after_another"
_BOUNDS = f"{DURABLE_WAITS_IN_SERIES} / {READS_IN_SERIES}"
_PYTEST = (sys.executable, "-m", "pytest", "--quiet", "--show-capture=no", "-p", "no:cacheprovider")
_WITHIN_S = 120.0
_FAILED = 1
"""What pytest exits with if a test failed; with another code it did not run."""


def row_of_waits(command: Sequence[str] = (*_PYTEST, FILE, "-k", TEST)) -> Row:
    """Run the test in a process of its own, which takes seconds; return its line of the table."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, timeout=_WITHIN_S, check=False
        )
    except subprocess.TimeoutExpired:
        return _row(f"not counted: {FILE} took longer than {_WITHIN_S:.0f} s", met=False)
    if done.returncode == 0:
        return _row(f"at most {_BOUNDS}, counted by {FILE}", met=True)
    if done.returncode == _FAILED:
        return _row(f"more than {_BOUNDS}, or not counted: {FILE} fails", met=False)
    return _row(f"not counted: pytest {FILE} exited with {done.returncode}", met=False)


def _row(reached: str, *, met: bool) -> Row:
    return Row("One INFER, durable waits / reads one after another", reached, f"<= {_BOUNDS}", met)
