"""A pytest plugin for `make faults`: the table of faults at the end, and its exit code.

Tests say which row they belong to with `@pytest.mark.fault(ROW)`; what they measured comes as user
properties: `heal_s` and `violations` (names of invariants).
"""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.faults.table import NOT_MADE, REQUIRED

ROW = "fault_row"
HEAL = "heal_s"
VIOLATIONS = "violations"
MISSED = 1


@dataclass
class Row:
    """What is known of one fault."""

    runs: int = 0
    failed: list[str] = field(default_factory=list)
    heal_s: float = 0.0
    violations: set[str] = field(default_factory=set)

    @property
    def verdict(self) -> str:
        """One word, or the invariants that did not hold."""
        if not self.runs:
            return "MISSING"
        if self.violations:
            return ", ".join(sorted(self.violations))
        return "FAILED" if self.failed else "ok"


class FaultTable:
    """Collects the reports of tests into rows."""

    def __init__(self) -> None:
        self.rows = {row: Row() for row in REQUIRED}

    @property
    def missed(self) -> bool:
        """True if a row was not made, or did not hold."""
        return any(row.verdict != "ok" for row in self.rows.values())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Count a test once it is known how it went."""
        report = yield
        marker = item.get_closest_marker("fault")
        if marker is not None:
            self._add(marker.args[0], report)
        return report

    def _add(self, name: str, report: pytest.TestReport) -> None:
        row = self.rows.setdefault(name, Row())
        row.runs += report.when == "call"
        if report.failed:
            row.failed.append(report.nodeid)
        if report.when != "teardown":
            return
        for key, value in report.user_properties:
            if key == HEAL and isinstance(value, float):
                row.heal_s = max(row.heal_s, value)
            elif key == VIOLATIONS:
                row.violations |= set(str(value).split())

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print the table, and what no test on one machine makes."""
        width = max(map(len, self.rows))
        terminalreporter.section("faults")
        terminalreporter.line(f"{'fault':{width}}  runs  heal s  invariants")
        for name, row in self.rows.items():
            terminalreporter.line(f"{name:{width}}  {row.runs:4}  {row.heal_s:6.1f}  {row.verdict}")
        terminalreporter.line("")
        for part, reason in NOT_MADE.items():
            terminalreporter.line(f"not made: {part} ({reason})")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail the run if the table is not whole, unless only some tests were asked for."""
        asked_for_all = not session.config.option.keyword and session.config.option.fault_table
        if asked_for_all and self.missed and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = MISSED


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what `make faults` may be told."""
    group = parser.getgroup("faults")
    group.addoption("--fault-table", action="store_true", help="a fault that is missed fails")
    group.addoption("--many", type=int, default=300, help="operations that contend for one slot")
    group.addoption("--cut-s", type=float, default=30, help="seconds without MongoDB for everybody")


def pytest_configure(config: pytest.Config) -> None:
    """Collect."""
    config.pluginmanager.register(FaultTable(), "modelyard-fault-table")
