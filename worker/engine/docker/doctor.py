"""Whether the Docker Engine is there and can do what a worker asks of it."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelyard.doctor.diagnosis import Diagnosis, failure, ok, version_of, warning
from modelyard.doctor.disk import check_room
from worker.engine.docker.calls import client_of, deadline
from worker.engine.protocol import RuntimeFaultError

ABOUT = "engine"
OLDEST_API = (1, 41)
WITHIN_S = 10.0
LEAST_ROOM = 10 << 30
"""Bytes for images and for what containers write."""
_SLOW_DRIVERS = frozenset({"vfs", "devicemapper"})
_LIMITS = {
    "MemoryLimit": "memory",
    "CpuCfsQuota": "processors",
    "PidsLimit": "processes",
}
"""What Docker says that its kernel can limit, and what a container could take without it."""


async def check_engine(url: str, *, with_gpus: bool) -> list[Diagnosis]:
    """Look at the engine as a worker sees it; `with_gpus` if this host has NVIDIA GPUs."""
    try:
        async with deadline("look at the engine", WITHIN_S, internal=True):
            client = client_of(url)
            try:
                version = await client.version()
                info = await client.system.info()
            finally:
                await client.close()
    except RuntimeFaultError as error:
        return [_unreachable(url, error.message)]
    return [
        _version(version),
        _storage(info),
        _limits(info),
        *([_gpu_runtime(info)] if with_gpus else []),
        *_room(url, info),
    ]


def _unreachable(url: str, said: str) -> Diagnosis:
    socket = Path(url.removeprefix("unix://"))
    if url.startswith("unix://") and not socket.exists():
        return failure(
            ABOUT,
            f"{socket} does not exist",
            "Install and start the Docker Engine, or let DOCKER_HOST name its socket.",
        )
    if "PermissionError" in said or "Permission denied" in said:
        return failure(
            ABOUT,
            f"this user may not use {socket}",
            "Add the service's user to the group of the socket (usually docker), and start the "
            "service anew. Whoever is in that group has the power of root on this machine.",
        )
    return failure(
        ABOUT,
        f"{url} does not answer: {said}",
        "Check that dockerd runs (`docker -H ... version`) and that DOCKER_HOST names it.",
    )


def _version(version: Mapping[str, Any]) -> Diagnosis:
    api = str(version.get("ApiVersion", "unknown"))
    seen = f"Docker {version.get('Version', '?')}, API {api}"
    if version_of(api) >= OLDEST_API:
        return ok(ABOUT, seen)
    return failure(ABOUT, seen, "Upgrade Docker to 20.10 or newer, whose API is 1.41.")


def _storage(info: Mapping[str, Any]) -> Diagnosis:
    driver = str(info.get("Driver", "unknown"))
    if driver in _SLOW_DRIVERS:
        return warning(
            ABOUT,
            f"storage driver {driver}",
            "Use overlay2: with this driver images take much more room, and containers start "
            "slowly.",
        )
    return ok(ABOUT, f"storage driver {driver}")


def _limits(info: Mapping[str, Any]) -> Diagnosis:
    seen = f"cgroups {info.get('CgroupVersion', '?')} ({info.get('CgroupDriver', '?')})"
    unlimited = [what for name, what in _LIMITS.items() if info.get(name) is False]
    if unlimited:
        return failure(
            ABOUT,
            f"{seen} can't limit {', '.join(unlimited)}",
            "Enable the memory, cpu and pids controllers of the kernel's cgroups: without them one "
            "container can take all of the machine.",
        )
    return ok(ABOUT, f"{seen} limits memory, processors and processes")


def _gpu_runtime(info: Mapping[str, Any]) -> Diagnosis:
    runtimes = sorted(info.get("Runtimes") or {})
    if "nvidia" in runtimes:
        return ok(ABOUT, "has NVIDIA's runtime for containers")
    return failure(
        ABOUT,
        f"has no runtime for GPUs (it has {', '.join(runtimes) or 'none'})",
        "Install NVIDIA's container toolkit, run `nvidia-ctk runtime configure --runtime=docker`, "
        "and restart Docker.",
    )


def _room(url: str, info: Mapping[str, Any]) -> list[Diagnosis]:
    """Look at the engine's folder, if the engine runs on this machine."""
    folder = Path(str(info.get("DockerRootDir", "")))
    here = url.startswith("unix://") and info.get("Name") == platform.node()
    if not here or not folder.is_dir():
        return []
    return [check_room(folder, "Docker's images and containers", least=LEAST_ROOM)]
