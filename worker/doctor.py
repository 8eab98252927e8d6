"""Whether this machine is ready for a worker: `modelyard doctor --service worker`."""

from pathlib import Path

from modelyard.broker.doctor import BrokerDuties, check_broker
from modelyard.contract.capacity.sizes import size_text
from modelyard.contract.topology import REPORTS, queues_of_host
from modelyard.doctor.diagnosis import Diagnosis, failure, ok, warning
from modelyard.doctor.disk import check_room, check_writable
from worker.devices.declared import DeclaredDevices
from worker.devices.nvml import NvmlDevices
from worker.devices.protocol import DevicesUnreadableError
from worker.engine.docker.doctor import check_engine
from worker.settings import WorkerSettings

_CAUTION = "Name the images that may run, or their registry and folder."
LEAST_ROOM = 16 << 20
"""Bytes for the journal of attempts and the watchdog's file."""


async def examine(settings: WorkerSettings) -> list[Diagnosis]:
    """Look at all that a worker with these settings uses."""
    devices, found = await _devices(settings)
    gpus = settings.worker_devices is None and found
    runtime_dir = Path(settings.worker_runtime_dir)
    return [
        *await check_engine(settings.docker_url, with_gpus=gpus),
        *devices,
        *await check_broker(
            settings.amqp_url.get_secret_value(),
            BrokerDuties(publishes_to=REPORTS, needs=queues_of_host(settings.host_id)),
        ),
        check_writable(
            runtime_dir, "MODELYARD_WORKER_RUNTIME_DIR", setting="MODELYARD_WORKER_RUNTIME_DIR"
        ),
        check_room(runtime_dir, "the journal of attempts", least=LEAST_ROOM),
        *(_dataset_root(Path(root)) for root in settings.worker_dataset_roots),
        *(warning("configuration", one, _CAUTION) for one in settings.cautions),
    ]


async def _devices(settings: WorkerSettings) -> tuple[list[Diagnosis], bool]:
    """Look at the devices; return also whether there are any."""
    if settings.worker_devices is not None:
        declared = await DeclaredDevices(settings.worker_devices).found()
        names = ", ".join(f"{one.uuid} ({size_text(one.memory)})" for one in declared) or "none"
        return [ok("devices", f"declared: {names}")], bool(declared)
    try:
        nvml = NvmlDevices()
        found, version = await nvml.found(), await nvml.driver_version()
    except DevicesUnreadableError as error:
        advice = (
            "Look at `nvidia-smi`: the driver and its library must be of the same version, and "
            "after a GPU has failed it has to be reset. Or declare devices in "
            "MODELYARD_WORKER_DEVICES."
        )
        return [failure("devices", f"NVIDIA's driver can't be asked: {error}", advice)], False
    if version is None:
        return [ok("devices", "no NVIDIA driver: this host offers no GPUs")], False
    findings = [ok("devices", f"NVIDIA driver {version}")]
    findings += [
        ok("devices", f"{one.index}: {one.model}, {size_text(one.memory)}, {one.uuid}")
        for one in found
    ]
    if not found:
        findings.append(
            failure("devices", "the driver has no GPU that can be used", "Look at `nvidia-smi`.")
        )
    return findings, bool(found)


def _dataset_root(root: Path) -> Diagnosis:
    if root.is_dir():
        return ok("datasets", f"{root} is there")
    return warning(
        "datasets",
        f"{root} is not a folder on this machine",
        "Mount or make it, or remove it from MODELYARD_WORKER_DATASET_ROOTS: no dataset below it "
        "can be used.",
    )
