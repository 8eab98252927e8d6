"""Turns a container plan into the body of `POST /containers/create`: an allow-list of fields. Pure.

Source: Docker Engine API 1.41, ContainerCreate.
"""

from math import ceil
from typing import Any

from worker.engine.plan import ContainerPlan

ROOT_SLACK = 1.25
"""The storage driver's limit, as a multiple of the model's disk limit.

At the model's limit the worker stops the container and reports the reason. At the storage driver's
limit a write fails and the program only sees that error, so this limit is the higher one.
"""
_LOG_CONFIG = {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}
_TMP = "/tmp"  # noqa: S108 - inside of the container


def engine_config(plan: ContainerPlan, *, limit_root: bool = False) -> dict[str, Any]:
    """Return the whole configuration; a field that is not named here is never sent.

    With `limit_root` the storage driver also limits what is written to the root file system.
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
        # The worker probes readiness; the image's own check would only start more processes.
        "Healthcheck": {"Test": ["NONE"]},
        "StopTimeout": int(plan.stop_grace_s),
        "HostConfig": _host_config(plan),
        "NetworkingConfig": {"EndpointsConfig": {plan.network: {}}},
    }
    if limit_root and not plan.read_only and plan.labels.disk is not None:
        config["HostConfig"]["StorageOpt"] = {"size": str(ceil(plan.labels.disk * ROOT_SLACK))}
    if plan.entrypoint is not None:
        # Of an empty list the engine would think that nothing was asked.
        config["Entrypoint"] = list(plan.entrypoint) or [""]
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
        # With another policy the engine would restart containers without the worker's knowledge.
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "LogConfig": _LOG_CONFIG,
        "Mounts": _mounts(plan),
    }
    if plan.kept_folder != _TMP:
        # exec, unlike Docker's default: compilers and package caches run files from /tmp.
        options = f"rw,exec,nosuid,nodev,size={plan.tmpfs_bytes},mode=1777"
        host["Tmpfs"] = {_TMP: options}
    if plan.port is not None and plan.publish:
        host["PortBindings"] = {f"{plan.port}/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}
    if plan.devices:
        host["DeviceRequests"] = [
            {"Driver": "nvidia", "DeviceIDs": list(plan.devices), "Capabilities": [["gpu"]]}
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
            # Docker must not copy files of the image into an empty dataset volume.
            mount["VolumeOptions"] = {"NoCopy": True}
        else:
            # Keep out all that is or will be mounted below the folder: it would be writable.
            mount["BindOptions"] = {"Propagation": "rprivate", "NonRecursive": True}
        mounts.append(mount)
    if plan.kept_folder is not None:
        mounts.append({"Type": "volume", "Target": plan.kept_folder})
    return mounts
