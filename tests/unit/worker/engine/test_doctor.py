"""What the doctor says of engines that are old, away, slow, or lack something."""

import platform
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from modelyard.doctor import disk
from modelyard.doctor.diagnosis import Diagnosis, Verdict
from tests.support.worker.scripted_engine import ScriptedEngine, scripted_engine
from worker.engine.docker import doctor
from worker.engine.docker.doctor import check_engine

INFO: dict[str, Any] = {
    "Driver": "overlay2",
    "CgroupVersion": "2",
    "CgroupDriver": "systemd",
    "MemoryLimit": True,
    "CpuCfsQuota": True,
    "PidsLimit": True,
    "Runtimes": {"nvidia": {}, "runc": {}},
    "Name": platform.node(),
}


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[ScriptedEngine]:
    async with scripted_engine(tmp_path) as (engine, _runtime):
        engine.answers["GET /info"] = {**INFO, "DockerRootDir": str(tmp_path)}
        yield engine


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"unix://{tmp_path}/engine.sock"


def failed(found: list[Diagnosis]) -> list[str]:
    assert all(one.advice for one in found if one.verdict is not Verdict.OK)
    return [one.seen for one in found if one.verdict is Verdict.FAILURE]


async def test_an_engine_that_has_all_is_well(engine: ScriptedEngine, url: str) -> None:
    found = await check_engine(url, with_gpus=True)
    assert {one.verdict for one in found} == {Verdict.OK}, found
    assert [one.about for one in found] == ["engine"] * 4 + ["disk"]
    assert engine.asked.count("GET /info") == 1


async def test_an_engine_with_an_older_api_is_a_failure(engine: ScriptedEngine, url: str) -> None:
    old = {"ApiVersion": "1.40", "Version": "19.03.15"}
    engine.answers |= {"GET /version": old, "GET /v1.40/version": old}
    engine.answers["GET /v1.40/info"] = INFO
    assert failed(await check_engine(url, with_gpus=False)) == ["Docker 19.03.15, API 1.40"]


async def test_gpus_without_nvidias_runtime_are_a_failure(engine: ScriptedEngine, url: str) -> None:
    engine.answers["GET /info"] = {**INFO, "Runtimes": {"runc": {}}}
    assert failed(await check_engine(url, with_gpus=False)) == []
    assert failed(await check_engine(url, with_gpus=True)) == [
        "has no runtime for GPUs (it has runc)"
    ]


async def test_a_kernel_that_can_not_limit_containers_is_a_failure(
    engine: ScriptedEngine, url: str
) -> None:
    engine.answers["GET /info"] = {**INFO, "MemoryLimit": False, "PidsLimit": False}
    assert failed(await check_engine(url, with_gpus=False)) == [
        "cgroups 2 (systemd) can't limit memory, processes"
    ]


async def test_a_slow_storage_driver_is_a_warning(engine: ScriptedEngine, url: str) -> None:
    engine.answers["GET /info"] = {**INFO, "Driver": "vfs"}
    found = await check_engine(url, with_gpus=False)
    assert [one.seen for one in found if one.verdict is Verdict.WARNING] == ["storage driver vfs"]


async def test_an_engine_without_room_is_a_failure(
    engine: ScriptedEngine, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "GET /info" in engine.answers
    monkeypatch.setattr(doctor, "LEAST_ROOM", 1 << 60)
    [said] = failed(await check_engine(url, with_gpus=False))
    assert "Docker's images and containers" in said


async def test_the_disk_of_an_engine_elsewhere_is_not_looked_at(
    engine: ScriptedEngine, url: str
) -> None:
    engine.answers["GET /info"] = {**INFO, "DockerRootDir": "/", "Name": "another"}
    assert "disk" not in {one.about for one in await check_engine(url, with_gpus=False)}


async def test_an_engine_that_is_not_there_is_one_failure(tmp_path: Path) -> None:
    said = failed(await check_engine(f"unix://{tmp_path}/absent.sock", with_gpus=True))
    assert said == [f"{tmp_path}/absent.sock does not exist"]
    [said_of_port] = failed(await check_engine("tcp://127.0.0.1:1", with_gpus=True))
    assert said_of_port.startswith("tcp://127.0.0.1:1 does not answer: ")


async def test_an_engine_that_hangs_is_one_failure(
    engine: ScriptedEngine, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.answers["GET /info"] = engine.hang
    monkeypatch.setattr(doctor, "WITHIN_S", 0.2)
    [said] = failed(await check_engine(url, with_gpus=False))
    assert "did not answer within 0.2 s" in said


async def test_an_engine_that_answers_nonsense_is_one_failure(
    engine: ScriptedEngine, url: str
) -> None:
    engine.answers["GET /info"] = (500, "out of order")
    [said] = failed(await check_engine(url, with_gpus=False))
    assert "does not answer" in said


def test_a_disk_that_is_nearly_full_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "FULL_PART", 1.0)
    assert disk.check_room(tmp_path / "not" / "yet", "it", least=1).verdict is Verdict.WARNING
