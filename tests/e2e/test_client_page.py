"""The programs in docs/clients.md, run as they stand there."""

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from tests.e2e.fleet import User

PAGE = Path(__file__).resolve().parents[2] / "docs" / "clients.md"
PROGRAMS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
DIGITS = [r"\{'model_name': 'digits'.*\}\n", r"(night-[012] \{.*'accuracy': .*\}\n){3}"]


@pytest.mark.parametrize(("program", "printed"), [*zip(PROGRAMS, DIGITS, strict=True)])
async def test_a_program_of_the_page_does_what_it_says(
    user: User, program: str, printed: str
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        env={**os.environ, "MODELYARD_URL": user.fleet.url},
        stdout=asyncio.subprocess.PIPE,
    )
    told, _ = await process.communicate()
    assert process.returncode == 0
    assert re.fullmatch(printed, told.decode()), told
