"""A container plan as Docker's `POST /containers/create` takes it: an allow-list of fields. Pure.

Source: Docker Engine API 1.41, ContainerCreate.
"""

from math import ceil
from typing import Any

from worker.engine.plan import ContainerPlan

ROOT_SLACK = 1.25
"""The storage driver's limit by the model's: within it the worker ends the container and says why,
at it a write fails and the program says what it likes."""
_LOG_CONFIG = {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}
_TMP = "/tmp"  # noqa: S108 - inside of the container


def engine_config(plan: ContainerPlan, *, limit_root: bool = False) -> dict[str, Any]:
    """Return the whole configuration; what is not named here is never sent.

    `limit_root`: have the storage driver bound what is written to the root file system too.
    """
    config: dict[str, Any] = {
        "Image": plan.image,
        "User": plan.user,
        "Env": [f"{name}={value}" for name, value in plan.env.items()],
        "Labels": plan.labels.as_labels(),
        "Tty": False,
        "OpenStdin": False,
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        # Readiness is probed from outside; an image's own check would only cost processes.
        "Healthcheck": {"Test": ["NONE"]},
        "StopTimeout": int(plan.stop_grace_s),
        "HostConfig": _host_config(plan),
        "NetworkingConfig": {"EndpointsConfig": {plan.network: {}}},
    }
    if limit_root and not plan.read_only and plan.labels.disk is not None:
        config["HostConfig"]["StorageOpt"] = {"size": str(ceil(plan.labels.disk * ROOT_SLACK))}
    if plan.command is not None:
        config["Cmd"] = list(plan.command)
    if plan.port is not None:
        config["ExposedPorts"] = {f"{plan.port}/tcp": {}}
    return config


def _host_config(plan: ContainerPlan) -> dict[str, Any]:
    host: dict[str, Any] = {
        "NetworkMode": plan.network,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true"],
        "Privileged": False,
        "PublishAllPorts": False,
        "IpcMode": "private",
        "ReadonlyRootfs": plan.read_only,
        "Memory": plan.memory,
        "MemorySwap": plan.memory,
        "NanoCpus": round(plan.cpus * 1_000_000_000),
        "PidsLimit": plan.pids_limit,
        "ShmSize": plan.shm,
        "OomKillDisable": False,
        "Init": True,
        "AutoRemove": False,
        # Anything else would let the engine revive containers behind our back.
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "LogConfig": _LOG_CONFIG,
        "Mounts": _mounts(plan),
    }
    if plan.kept_folder != _TMP:
        # Compilers and package caches run what they put there; Docker's own default is noexec.
        options = f"rw,exec,nosuid,nodev,size={plan.tmpfs_bytes},mode=1777"
        host["Tmpfs"] = {_TMP: options}
    if plan.port is not None and plan.publish:
        host["PortBindings"] = {f"{plan.port}/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}
    if plan.gpus:
        host["DeviceRequests"] = [
            {"Driver": "nvidia", "Count": plan.gpus, "Capabilities": [["gpu"]]}
        ]
    return host


def _mounts(plan: ContainerPlan) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = []
    if plan.dataset is not None:
        mount: dict[str, Any] = {
            "Type": plan.dataset.kind,
            "Source": plan.dataset.source,
            "Target": plan.dataset.target,
            "ReadOnly": True,
        }
        if plan.dataset.kind == "volume":
            # The image's own files never get into a dataset.
            mount["VolumeOptions"] = {"NoCopy": True}
        else:
            # What is or will be mounted below the folder stays outside of the container: it would
            # not be read-only there.
            mount["BindOptions"] = {"Propagation": "rprivate", "NonRecursive": True}
        mounts.append(mount)
    if plan.kept_folder is not None:
        mounts.append({"Type": "volume", "Target": plan.kept_folder})
    return mounts
