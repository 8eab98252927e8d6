"""The record of the stack that runs in the background: `var/stack.json` and `var/stack.env`."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Self

from deploy.local.layout import Endpoints
from deploy.local.processes import ProcessId

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from deploy.local.daemon import Daemon


@dataclass(frozen=True)
class Process:
    """One process of the stack, as `status` shows it."""

    name: str
    log: str
    identity: ProcessId


@dataclass(frozen=True)
class State:
    """The addresses and processes of a stack."""

    endpoints: Endpoints
    processes: tuple[Process, ...]

    @classmethod
    def of(cls, endpoints: Endpoints, daemons: Iterable[Daemon]) -> Self:
        processes = (
            Process(daemon.name, str(daemon.log), identity)
            for daemon in daemons
            if (identity := daemon.process)
        )
        return cls(endpoints, tuple(processes))

    @classmethod
    def load(cls, root: Path) -> Self | None:
        """Read the record; None if no stack was left running."""
        file = _file(root)
        if not file.exists():
            return None
        record = json.loads(file.read_text())
        processes = (
            Process(p["name"], p["log"], ProcessId(**p["identity"])) for p in record["processes"]
        )
        return cls(Endpoints(**record["endpoints"]), tuple(processes))

    @property
    def alive(self) -> bool:
        """Whether every process that was started still runs."""
        return all(process.identity.alive for process in self.processes)

    def save(self, root: Path) -> None:
        file = _file(root)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".env").write_text(self.shell())
        file.write_text(json.dumps(asdict(self), indent=2) + "\n")

    def shell(self) -> str:
        """Return the addresses as lines for a shell to source."""
        variables = self.endpoints.variables().items()
        return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables)

    @staticmethod
    def forget(root: Path) -> None:
        """Remove the record."""
        _file(root).unlink(missing_ok=True)
        _file(root).with_suffix(".env").unlink(missing_ok=True)


def _file(root: Path) -> Path:
    return root / "var" / "stack.json"
