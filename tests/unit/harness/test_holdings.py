"""I11's first look: each boot of a process is compared with what it held itself when ready."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from deploy.local.processes import ProcessId
from tests.faults.harness.holdings import Holdings
from tests.support.invariants.processes import MORE_DESCRIPTORS, Holding, grown

NAME = "worker-h1"
ONLINE = '{"event": "host.online"}\n'


@contextmanager
def launched(daemon: Any) -> Iterator[ProcessId]:
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            process = ProcessId.of(child.pid)
            assert process is not None
            daemon.process = process
            yield process
        finally:
            child.kill()
            daemon.process = None


def log(daemon: Any, line: str) -> None:
    with daemon.log.open("a") as end:
        end.write(line)


async def test_a_process_that_was_restarted_is_looked_at_when_it_is_ready(tmp_path: Path) -> None:
    daemon = SimpleNamespace(process=None, log=tmp_path / "log")
    log(daemon, "")
    fleet: Any = SimpleNamespace(services={NAME: SimpleNamespace(daemon=daemon)})
    first: dict[str, Holding] = {}
    holdings = Holdings(fleet, first)
    for _ in range(2):
        holdings.boots(NAME)  # what it logged before does not count
        with launched(daemon) as process:
            before = dict(first)
            await holdings.look_at_new()
            assert first == before
            log(daemon, ONLINE)
            await holdings.look_at_new()
            assert first[NAME].process == process
            seen = first[NAME]
            assert grown(first, {NAME: seen}) == []
            leaks = replace(seen, descriptors=seen.descriptors + MORE_DESCRIPTORS + 1)
            assert grown(first, {NAME: leaks})
