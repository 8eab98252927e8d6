"""What is made of an engine's statistics, and of a container's control group."""

from pathlib import Path
from typing import Any

import pytest

from worker.engine.docker.documents import StatsDocument
from worker.engine.docker.memory import peak_of, reading_of
from worker.engine.protocol import MemoryReading

ID, PID = "c0" * 32, 12


@pytest.mark.parametrize(
    ("memory", "peak", "reading"),
    [
        pytest.param(
            {
                "usage": 100,
                "max_usage": 150,
                "stats": {"inactive_file": 1, "total_inactive_file": 30},
            },
            None,
            MemoryReading(100, 30, 150),
            id="version 1",
        ),
        pytest.param(
            {"usage": 100, "stats": {"inactive_file": 20, "file": 50}},
            140,
            MemoryReading(100, 20, 140),
            id="version 2",
        ),
        pytest.param(
            {"usage": 100, "stats": {}}, None, MemoryReading(100, 0, None), id="an old kernel"
        ),
        pytest.param(
            {"usage": 10, "stats": {"inactive_file": 20}}, None, MemoryReading(10, 10), id="a race"
        ),
        pytest.param({}, None, MemoryReading(), id="not running"),
    ],
)
def test_statistics_are_read(
    memory: dict[str, Any], peak: int | None, reading: MemoryReading
) -> None:
    stats = StatsDocument.model_validate({"memory_stats": memory, "cpu_stats": {}})
    assert reading_of(stats, peak) == reading
    assert reading.used == reading.in_use - reading.droppable


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """Make a process and its control group."""
    group = tmp_path / "cgroup" / "docker" / ID
    group.mkdir(parents=True)
    (group / "memory.peak").write_text("4096\n")
    (tmp_path / "proc" / str(PID)).mkdir(parents=True)
    (tmp_path / "proc" / str(PID) / "cgroup").write_text(f"0::/docker/{ID}\n")
    return tmp_path


def peak(kernel: Path, container_id: str = ID, pid: int = PID) -> int | None:
    return peak_of(container_id, pid, proc=kernel / "proc", cgroups=kernel / "cgroup")


def test_the_peak_is_that_of_the_control_group(kernel: Path) -> None:
    assert peak(kernel) == 4096


def test_a_process_of_another_machine_is_not_asked(kernel: Path) -> None:
    assert peak(kernel, container_id="d1" * 32) is None
    assert peak(kernel, pid=13) is None


@pytest.mark.parametrize("content", [None, "", "max\n"])
def test_a_kernel_that_does_not_tell_has_no_peak(kernel: Path, content: str | None) -> None:
    file = kernel / "cgroup" / "docker" / ID / "memory.peak"
    file.unlink()
    if content is not None:
        file.write_text(content)
    assert peak(kernel) is None


def test_a_process_without_the_unified_hierarchy_has_no_peak(kernel: Path) -> None:
    (kernel / "proc" / str(PID) / "cgroup").write_text(f"4:memory:/docker/{ID}\n")
    assert peak(kernel) is None
