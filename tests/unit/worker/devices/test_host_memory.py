"""What the kernel tells of the host's memory."""

from pathlib import Path

import pytest

from worker.devices.host_memory import memory_in_use

MEMINFO = """MemTotal:       16384 kB
MemFree:         1024 kB
MemAvailable:   12288 kB
HugePages_Total:       0
"""


def test_memory_in_use_is_what_programs_could_not_get(tmp_path: Path) -> None:
    told = tmp_path / "meminfo"
    told.write_text(MEMINFO, encoding="ascii")
    assert memory_in_use(told) == (16384 - 12288) * 1024


def test_this_host_has_some_of_its_memory_in_use() -> None:
    assert (memory_in_use() or 0) > 0


@pytest.mark.parametrize("text", [None, "", "MemTotal: 16384 kB\n", "MemTotal:\n", "MemTotal: x\n"])
def test_a_host_that_does_not_tell_is_not_measured(tmp_path: Path, text: str | None) -> None:
    told = tmp_path / "meminfo"
    if text is not None:
        told.write_text(text, encoding="ascii")
    assert memory_in_use(told) is None
