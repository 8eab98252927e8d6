"""Runs `modelyard`, as a person or a script does."""

import asyncio
import os
import re
import sys
from asyncio.subprocess import PIPE, Process
from dataclasses import dataclass


@dataclass(frozen=True)
class Ran:
    """What a command said."""

    code: int
    out: str
    err: str


async def started(url: str, *arguments: str, stdout: int = PIPE, columns: int = 200) -> Process:
    """Start a command; `columns` is the width of its terminal, if `stdout` is one."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "modelyard.cli",
        *arguments,
        env={"MODELYARD_URL": url, "COLUMNS": str(columns), "TERM": "xterm"},
        stdin=PIPE,
        stdout=stdout,
        stderr=PIPE,
    )


async def run(url: str, *arguments: str, stdin: str = "") -> Ran:
    process = await started(url, *arguments)
    out, err = await process.communicate(stdin.encode())
    assert "Traceback" not in err.decode()
    return Ran(process.returncode or 0, out.decode(), err.decode())


async def run_on_terminal(url: str, *arguments: str, columns: int = 80) -> Ran:
    """Run a command whose output goes to a terminal; what it prints comes without styles."""
    terminal, its_end = os.openpty()
    try:
        process = await started(url, *arguments, stdout=its_end, columns=columns)
    finally:
        os.close(its_end)
    reading = asyncio.create_task(asyncio.to_thread(_all_of, terminal))
    _, err = await process.communicate()
    text = re.sub(r"\x1b\[[0-9;]*m", "", (await reading).decode()).replace("\r\n", "\n")
    return Ran(process.returncode or 0, text, err.decode())


def _all_of(terminal: int) -> bytes:
    parts = []
    try:
        while part := os.read(terminal, 65_536):
            parts.append(part)
    except OSError:  # Linux says so when nobody can write to it any more
        pass
    finally:
        os.close(terminal)
    return b"".join(parts)
