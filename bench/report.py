"""What a benchmark says: a table of goals beside what was reached, and a file with all figures."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from deploy.local.layout import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rich.console import Console

_LIBRARIES = ("aio-pika", "aiodocker", "aiohttp", "fastapi", "httpx2", "motor", "pydantic",
              "pymongo", "uvicorn", "uvloop")  # fmt: skip
_WITHOUT_RESULTS = ":(exclude,glob)bench/results*.json"
_SHORT = 12
_KIB = 1024
_VISIBLE = 0.005


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `met` is null where there is no goal."""

    name: str
    reached: str
    goal: str = ""
    met: bool | None = None


@dataclass(frozen=True, slots=True)
class Checkout:
    """What was measured, and since when."""

    commit: str
    changed: bool
    """Whether files differ from the commit, or are not in it; what benchmarks write doesn't count.
    """
    at: datetime

    @classmethod
    def now(cls, root: Path = ROOT) -> Checkout:
        """Look at the checkout; without git the commit is unknown."""
        commit = _git(root, "rev-parse", "HEAD") or "unknown"
        changed = bool(_git(root, "status", "--porcelain", "--", ".", _WITHOUT_RESULTS))
        return cls(commit, changed, datetime.now(UTC))

    @property
    def name(self) -> str:
        """The whole commit, with `-dirty` if files differ from it."""
        return f"{self.commit}-dirty" if self.changed else self.commit

    @property
    def sentence(self) -> str:
        """The commit and the date, for a person."""
        changes = ", with changes that are not in it" if self.changed else ""
        return f"Commit {self.commit[:_SHORT]}{changes}. {self.at:%Y-%m-%d %H:%M} UTC."


@dataclass(frozen=True, slots=True)
class Run:
    """The command that was run, and the versions of the servers that it used."""

    checkout: Checkout
    command: str
    servers: Mapping[str, str]
    peers: Mapping[str, str]
    """Versions of the libraries that Modelyard is compared with."""


def print_table(console: Console, title: str, rows: Sequence[Row], checkout: Checkout) -> None:
    """Print goals beside what was reached, and below what was measured and when."""
    table = Table("", "goal", "reached", "met", title=title, title_justify="left")
    table.caption, table.caption_justify = checkout.sentence, "left"
    for row in rows:
        met = "" if row.met is None else "[green]yes[/green]" if row.met else "[red]no[/red]"
        table.add_row(*map(escape, (row.name, row.goal, row.reached)), met)
    console.print(table)


def print_usage(console: Console, title: str, usages: Mapping[str, Mapping[str, float]]) -> None:
    """Print a column for each kind of measurement, and a line for each service.

    What is too little to be seen is left out.
    """
    services = dict.fromkeys(name for usage in usages.values() for name in usage)
    table = Table("", *usages, title=title, title_justify="left")
    for service in services:
        cells = [usage.get(service, 0.0) for usage in usages.values()]
        table.add_row(service, *(f"{cell:.2f}" if cell >= _VISIBLE else "" for cell in cells))
    table.add_row("all", *(f"{sum(usage.values()):.2f}" for usage in usages.values()))
    console.print(table)


def peer_versions() -> dict[str, str]:
    """Return the versions in the peers' environment, which are pinned."""
    lines = (ROOT / "bench" / "requirements-peers.txt").read_text().splitlines()
    pins = (line.partition("==") for line in lines if not line.startswith("#"))
    return {f"peers: {name}": version for name, _, version in pins}


def write_results(path: Path, run: Run, rows: Sequence[Row], figures: Mapping[str, object]) -> None:
    """Write a JSON file with the machine, the run, the table and all raw figures.

    `figures` has values that JSON can hold. No path and no name of this machine is in it.
    """
    content = {
        "at": run.checkout.at.isoformat(timespec="seconds"),
        "commit": run.checkout.name,
        "command": run.command,
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            **run.servers,
            **{name: metadata.version(name) for name in _LIBRARIES},
            **run.peers,
        },
        "rows": [asdict(row) for row in rows],
        "figures": figures,
    }
    path.write_text(json.dumps(content, indent=2) + "\n")


def machine() -> dict[str, object]:
    """Say what the figures were measured on."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / _KIB**3, 1),
        "architecture": platform.machine(),
        "system": platform.system(),
    }


def _git(root: Path, *arguments: str) -> str:
    """Return what git says; nothing if it fails, or is not installed."""
    command = ["git", *arguments]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
