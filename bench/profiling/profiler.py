"""Samples processes with py-spy while a load runs, and writes a table for each."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from bench.peer_processes import PYTHON
from bench.profiling.samples import Stacks, parse, table
from deploy.local.errors import StackError
from deploy.local.layout import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from deploy.local.processes import ProcessId
    from deploy.local.services import Service

PROGRAM = PYTHON.with_name("py-spy")
PER_S = 100
"""Samples a second. For each one all threads of the process are stopped for a moment."""
_FOLDER = ROOT / "var" / "profile"
_SAMPLING = b"Sampling process"
"""What py-spy says once it has found everything in the process."""
_START_S = _STOP_S = 30.0


class Profiler:
    """Samples processes, and keeps a table for each process and load.

    Only threads that run, or wait for a processor, are sampled, and of native code nothing is seen:
    its time is that of the Python function that has called it.
    """

    def __init__(self, folder: Path, say: Callable[[str], None], program: Path = PROGRAM) -> None:
        """Write into `folder`, which is emptied; `say` tells a person what could not be sampled.

        Raises `StackError` if py-spy is missing.
        """
        if not program.exists():
            message = f"{program} is missing; `make bench ARGS=--profile` installs it."
            raise StackError(message)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder = folder
        self._say = say
        self._program = program
        self._stacks: dict[str, Stacks] = {}

    @classmethod
    def of(cls, benchmark: str, say: Callable[[str], None]) -> Profiler:
        """Return one that writes into `var/profile/BENCHMARK`; raises `StackError`."""
        return cls(_FOLDER / benchmark, say)

    @asynccontextmanager
    async def sampling(self, load: str, processes: Mapping[str, ProcessId]) -> AsyncIterator[None]:
        """Sample these processes inside of the block; samples of the same load are added up.

        The tables are written at its end, unless it raises. A process to which py-spy can't attach
        is told of, and does not end the benchmark.
        """
        async with AsyncExitStack() as exits:
            for name, process in processes.items():
                await exits.enter_async_context(self._sampling_one(load, name, process.pid))
            yield

    @asynccontextmanager
    async def _sampling_one(self, load: str, name: str, pid: int) -> AsyncIterator[None]:
        title = f"{name}, {load}"
        raw = self.folder / f"{_file_name(title)}.raw"
        spy = await asyncio.create_subprocess_exec(
            *(str(self._program), "record", "--pid", str(pid), "--rate", str(PER_S)),
            *("--format", "raw", "--threads", "--function", "--output", str(raw)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            if failure := await _failure_to_begin(spy):
                self._say(f"{title}: not sampled. {failure}")
            yield
        finally:
            await _stop(spy)
        if raw.exists():
            self._add(title, parse(raw.read_text(errors="replace")))
            raw.unlink()

    def _add(self, title: str, stacks: Stacks) -> None:
        if found := self._stacks.setdefault(title, Stacks()) + stacks:
            self._stacks[title] = found
            path = self.folder / f"{_file_name(title)}.txt"
            path.write_text(table(title, found))


def sampling(
    profiler: Profiler | None, load: str, services: Iterable[Service]
) -> AbstractAsyncContextManager[None]:
    """Sample those of the services that run inside of the block, if there is a profiler."""
    if profiler is None:
        return nullcontext()
    daemons = [one.daemon for one in services]
    return profiler.sampling(
        load, {one.name: process for one in daemons if (process := one.process)}
    )


async def _failure_to_begin(spy: asyncio.subprocess.Process) -> str:
    """Return once py-spy samples, or why it does not: what it says first."""
    assert spy.stdout is not None  # noqa: S101 - it has a pipe
    said = b""
    with suppress(TimeoutError):
        async with asyncio.timeout(_START_S):
            while line := await spy.stdout.readline():
                if _SAMPLING in line:
                    return ""
                said = said or line.strip()
            return said.decode(errors="replace") or "py-spy ended."
    return f"py-spy has not begun in {_START_S:.0f} s."


async def _stop(spy: asyncio.subprocess.Process) -> None:
    """Have it write what it has, and wait until it has ended."""
    with suppress(ProcessLookupError):
        spy.send_signal(signal.SIGINT)
    try:
        async with asyncio.timeout(_STOP_S):
            await spy.communicate()
    except TimeoutError:
        with suppress(ProcessLookupError):
            spy.kill()
        await spy.wait()


def _file_name(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
