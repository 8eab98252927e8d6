"""What the doctor says of the devices and the folders of a host."""

from pathlib import Path

import pynvml
import pytest

from modelyard.doctor.diagnosis import Diagnosis, Verdict
from worker import doctor
from worker.settings import WorkerSettings

NO_DRIVER = pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
MISMATCH = pynvml.NVMLError(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)


async def examined(tmp_path: Path, about: str, **settings: object) -> list[Diagnosis]:
    """Examine a host without servers; return the findings about one thing."""
    given = {
        "host_id": "h",
        "docker_url": f"unix://{tmp_path}/absent.sock",
        "amqp_url": "amqp://127.0.0.1:1",
        "worker_runtime_dir": str(tmp_path / "run"),
        **settings,
    }
    found = await doctor.examine(WorkerSettings.model_validate(given))
    return [one for one in found if one.about == about]


@pytest.fixture(autouse=True)
def _no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    lacks(monkeypatch, NO_DRIVER)


def lacks(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def init() -> None:
        raise error

    monkeypatch.setattr(pynvml, "nvmlInit", init)


async def test_a_host_without_nvidias_driver_offers_no_gpus_and_is_well(tmp_path: Path) -> None:
    [found] = await examined(tmp_path, "devices")
    assert (found.verdict, found.seen) == (
        Verdict.OK,
        "no NVIDIA driver: this host offers no GPUs",
    )


async def test_a_driver_that_does_not_fit_its_library_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacks(monkeypatch, MISMATCH)
    [found] = await examined(tmp_path, "devices")
    assert found.verdict is Verdict.FAILURE
    assert "nvidia-smi" in (found.advice or "")


async def test_devices_and_driver_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 0)
    monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: "570.1")
    driver, none = await examined(tmp_path, "devices")
    assert driver.seen == "NVIDIA driver 570.1"
    assert none.verdict is Verdict.FAILURE


async def test_declared_devices_are_named(tmp_path: Path) -> None:
    declared = [{"uuid": "GPU-1", "memory": "40g"}]
    [found] = await examined(tmp_path, "devices", worker_devices=declared)
    assert found.seen == "declared: GPU-1 (40 GiB)"


async def test_a_dataset_root_that_is_not_there_is_a_warning(tmp_path: Path) -> None:
    roots = [str(tmp_path), str(tmp_path / "absent")]
    there, absent = await examined(tmp_path, "datasets", worker_dataset_roots=roots)
    assert there.verdict is Verdict.OK
    assert absent.verdict is Verdict.WARNING


async def test_a_runtime_folder_that_can_not_be_made_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = await examined(tmp_path, "disk", worker_runtime_dir=str(tmp_path / "file" / "run"))
    assert found[0].verdict is Verdict.FAILURE
    assert "MODELYARD_WORKER_RUNTIME_DIR" in found[0].seen
