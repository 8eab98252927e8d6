"""The table at the end of `make faults`: what is missing or failed in it makes the run fail."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.table import CANCELS, DEAF, DRAINS, ORPHANS, REQUIRED, ROLLING, ROWS, SHUTDOWN

ROOT = Path(__file__).resolve().parents[3]
MAKES = """
import pytest
from tests.faults.table import REQUIRED

ROWS = [pytest.param(row, marks=pytest.mark.fault(row)) for row in REQUIRED if row != {left_out!r}]

@pytest.mark.parametrize("row", ROWS)
def test_makes(row):
    assert row != {failing!r}
"""


def ended(
    folder: Path, *arguments: str, left_out: str = "", failing: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a suite that makes every row but these, as `make faults` does."""
    suite = folder / "test_made.py"
    suite.write_text(MAKES.format(left_out=left_out, failing=failing))
    plugins = ["-p", "tests.faults.report", "-p", "no:cacheprovider"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-c", "/dev/null", *plugins, *arguments, str(suite)],
        env={"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def verdict(run: subprocess.CompletedProcess[str], row: str) -> str:
    """Return the last word of a row of the table."""
    (line,) = [line for line in run.stdout.splitlines() if line.startswith(f"{row}  ")]
    return line.split()[-1]


def test_a_table_that_is_whole_is_exit_code_0(tmp_path: Path) -> None:
    run = ended(tmp_path, "--fault-table")
    assert run.returncode == 0, run.stdout
    assert {verdict(run, row) for row in REQUIRED} == {"ok"}


def test_what_is_promised_besides_the_rows_is_required_too() -> None:
    assert {*ROWS, ROLLING, DRAINS, CANCELS, DEAF, ORPHANS, SHUTDOWN} <= set(REQUIRED)


@pytest.mark.parametrize("row", [ROWS[0], SHUTDOWN], ids=lambda row: row[:12])
def test_a_row_that_no_test_makes_fails_the_run(tmp_path: Path, row: str) -> None:
    run = ended(tmp_path, "--fault-table", left_out=row)
    assert run.returncode == 1, run.stdout
    assert verdict(run, row) == "MISSING"


def test_a_row_whose_test_failed_fails_the_run(tmp_path: Path) -> None:
    run = ended(tmp_path, "--fault-table", failing=SHUTDOWN)
    assert run.returncode == 1, run.stdout
    assert verdict(run, SHUTDOWN) == "FAILED"


@pytest.mark.parametrize("arguments", [(), ("--fault-table", "-k", "makes")])
def test_whoever_asks_for_some_tests_alone_is_not_told_that_others_are_missing(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    run = ended(tmp_path, *arguments, left_out=ROLLING)
    assert run.returncode == 0, run.stdout
