"""Which container a process belongs to, and what a container holds of each device."""

import os
from pathlib import Path

import pytest

from tests.fakes.devices import GIB, FakeDevices, devices
from worker.devices.cgroups import containers_of
from worker.devices.holders import DeviceHolders
from worker.devices.protocol import DevicesUnreadableError

OURS, OTHER = "a1" * 32, "0f" * 32
PID = 4711


def in_cgroup(proc: Path, text: str) -> Path:
    (proc / str(PID)).mkdir(parents=True)
    (proc / str(PID) / "cgroup").write_text(text)
    return proc


@pytest.mark.parametrize(
    ("text", "containers"),
    [
        pytest.param(f"4:memory:/docker/{OURS}\n1:cpu:/docker/{OURS}\n", {OURS}, id="version 1"),
        pytest.param(f"0::/docker/{OURS}\n", {OURS}, id="version 2"),
        pytest.param(f"0::/system.slice/docker-{OURS}.scope\n", {OURS}, id="systemd"),
        pytest.param(f"0::/../docker-{OURS}.scope/init\n", {OURS}, id="a namespace of our own"),
        pytest.param(
            f"0::/docker/{OURS}/docker/{OTHER}\n", {OURS, OTHER}, id="an engine in a container"
        ),
        pytest.param("0::/user.slice/session-1.scope\n", set(), id="no container"),
        pytest.param(f"0::/docker/{OURS}{OTHER}\n", set(), id="something longer"),
        pytest.param("\xff\x00\n", set(), id="no text"),
    ],
)
def test_the_containers_of_a_process_are_in_its_control_groups(
    tmp_path: Path, text: str, containers: set[str]
) -> None:
    assert containers_of(PID, proc=in_cgroup(tmp_path, text)) == containers


def test_a_process_that_has_ended_is_in_no_container(tmp_path: Path) -> None:
    assert containers_of(PID, proc=tmp_path) == frozenset()


def test_this_process_can_be_asked_about() -> None:
    assert OURS not in containers_of(os.getpid())


async def test_a_container_holds_what_all_its_processes_take() -> None:
    inventory = FakeDevices(devices(8 * GIB, 8 * GIB, 8 * GIB))
    inventory.running = {"GPU-0": {1: GIB, 2: 2 * GIB, 3: 4 * GIB}, "GPU-1": {3: GIB}}
    holders = DeviceHolders(inventory, containers=lambda pid: {OTHER if pid == 3 else OURS})
    assert await holders.held_by(OURS) == {"GPU-0": 3 * GIB, "GPU-1": 0, "GPU-2": 0}
    assert await holders.held_by(OTHER) == {"GPU-0": 4 * GIB, "GPU-1": GIB, "GPU-2": 0}


async def test_what_can_not_be_asked_is_an_error() -> None:
    inventory = FakeDevices(devices(8 * GIB))
    inventory.broken = "the driver does not answer"
    with pytest.raises(DevicesUnreadableError, match="does not answer"):
        await DeviceHolders(inventory).held_by(OURS)
