"""The record of a stack that runs in the background: its `stack.json` and its `stack.env`."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Self

from deploy.local.layout import OWN_ADDRESSES, Endpoints
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
    host_id: str
    processes: tuple[Process, ...]
    own_addresses: tuple[str, ...] = ()
    """The addresses of servers that end with the stack, and that another stack can't use."""
    api_key: str | None = field(default=None, repr=False)
    """An admin key, if the gateway requires keys."""

    @classmethod
    def load(cls, home: Path) -> Self | None:
        """Read the record in the stack's folder; None if no stack was left running."""
        file = _file(home)
        if not file.exists():
            return None
        record = json.loads(file.read_text())
        processes = (
            Process(p["name"], p["log"], ProcessId(**p["identity"])) for p in record["processes"]
        )
        return cls(
            Endpoints(**record["endpoints"]),
            record.get("host_id", "local"),
            tuple(processes),
            tuple(record.get("own_addresses", ())),
            record.get("api_key"),
        )

    @property
    def alive(self) -> bool:
        """Whether every process that was started still runs."""
        return all(process.identity.alive for process in self.processes)

    def save(self, home: Path) -> None:
        """Write both files; only their owner may read them if they hold a key."""
        home.mkdir(parents=True, exist_ok=True)
        contents = {
            environment_file(home): self.shell(),
            _file(home): json.dumps(asdict(self), indent=2) + "\n",
        }
        for file, content in contents.items():
            file.touch()
            file.chmod(0o600 if self.api_key else 0o644)
            file.write_text(content)

    def shell(self) -> str:
        """Return the addresses as lines for a shell to source."""
        variables = self.endpoints.variables()
        variables[OWN_ADDRESSES] = " ".join(self.own_addresses)
        if self.api_key:
            variables["MODELYARD_API_KEY"] = self.api_key
        return "".join(f"export {name}={shlex.quote(it)}\n" for name, it in variables.items())

    @staticmethod
    def forget(home: Path) -> None:
        """Remove the record."""
        _file(home).unlink(missing_ok=True)
        environment_file(home).unlink(missing_ok=True)


def processes_of(daemons: Iterable[Daemon]) -> tuple[Process, ...]:
    """Return those that run, as a record has them."""
    return tuple(
        Process(daemon.name, str(daemon.log), identity)
        for daemon in daemons
        if (identity := daemon.process)
    )


def environment_file(home: Path) -> Path:
    """Return the file with the addresses of a stack, for a shell to source."""
    return home / "stack.env"


def _file(home: Path) -> Path:
    return home / "stack.json"
