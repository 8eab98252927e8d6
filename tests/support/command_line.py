"""Runs `modelyard`, as a person or a script does."""

import asyncio
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Ran:
    """What a command said."""

    code: int
    out: str
    err: str


async def run(url: str, *arguments: str, stdin: str = "") -> Ran:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "modelyard.cli",
        *arguments,
        env={"MODELYARD_URL": url, "COLUMNS": "200"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(stdin.encode())
    assert "Traceback" not in err.decode()
    return Ran(process.returncode or 0, out.decode(), err.decode())
