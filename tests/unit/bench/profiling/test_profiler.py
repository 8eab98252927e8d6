"""Sampling a process, with a program in py-spy's place."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from bench.profiling.profiler import Profiler, sampling
from deploy.local.errors import StackError
from deploy.local.processes import ProcessId

if TYPE_CHECKING:
    from deploy.local.services import Service

SAMPLING = """\
import pathlib, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
print("py-spy> Sampling process 100 times a second. Press Control-C to exit.", flush=True)
signal.sigwait({signal.SIGINT})
output = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
output.write_text("thread (1): MainThread;work (a.py:1) 3\\n")
"""
UNABLE = """\
print("Error: Permission Denied")
print("Caused by: something")
raise SystemExit(1)
"""


def own() -> ProcessId:
    process = ProcessId.of(os.getpid())
    assert process
    return process


class Named:
    """A service with its daemon in one, whose process runs or does not."""

    def __init__(self, name: str, process: ProcessId | None) -> None:
        self.daemon, self.name, self.process = self, name, process


class Spied:
    """A profiler whose program is a script, and what it has said."""

    def __init__(self, tmp_path: Path, script: str) -> None:
        program = tmp_path / "py-spy"
        program.write_text(f"#!{sys.executable}\n{script}")
        program.chmod(0o755)
        self.said: list[str] = []
        self.folder = tmp_path / "profile"
        self.folder.mkdir()
        (self.folder / "of-an-earlier-run.txt").touch()
        self.profiler = Profiler(self.folder, self.said.append, program)

    @property
    def files(self) -> list[str]:
        return sorted(one.name for one in self.folder.iterdir())


async def test_each_process_has_a_table_of_all_samples_of_a_load(tmp_path: Path) -> None:
    spied = Spied(tmp_path, SAMPLING)

    for _ in range(2):
        async with spied.profiler.sampling("one at a time", {"gateway": own(), "worker": own()}):
            pass

    assert spied.files == ["gateway-one-at-a-time.txt", "worker-one-at-a-time.txt"]
    table = (spied.folder / "gateway-one-at-a-time.txt").read_text()
    assert table.startswith("gateway, one at a time\n6 samples")
    assert spied.said == []


async def test_a_process_that_cannot_be_sampled_is_told_of_and_the_load_runs(
    tmp_path: Path,
) -> None:
    spied, ran = Spied(tmp_path, UNABLE), False

    async with spied.profiler.sampling("batches", {"worker": own()}):
        ran = True

    assert ran
    assert spied.said == ["worker, batches: not sampled. Error: Permission Denied"]
    assert spied.files == []


async def test_an_error_of_the_load_stops_the_sampling_and_leaves_no_table(tmp_path: Path) -> None:
    spied = Spied(tmp_path, SAMPLING)

    with pytest.raises(ZeroDivisionError):
        async with spied.profiler.sampling("batches", {"worker": own()}):
            raise ZeroDivisionError

    assert not [one for one in spied.files if one.endswith(".txt")]


async def test_services_that_run_are_sampled_by_their_names(tmp_path: Path) -> None:
    spied = Spied(tmp_path, SAMPLING)
    running, stopped = Named("gateway", own()), Named("worker", None)

    async with sampling(spied.profiler, "batches", cast("list[Service]", [running, stopped])):
        pass
    async with sampling(None, "singles", cast("list[Service]", [running])):
        pass

    assert spied.files == ["gateway-batches.txt"]


def test_without_the_program_nothing_begins(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="make bench ARGS=--profile"):
        Profiler(tmp_path / "profile", print, tmp_path / "py-spy")
