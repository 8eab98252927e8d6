"""What every service image has to keep, tried on the image itself: `make images`."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from deploy.containers.service_images import image_of
from deploy.local.builder import Builder, ImagesError
from deploy.local.layout import ROOT
from modelyard import __version__

_USER = "65532:65532"
_LABELS = ("title", "description", "licenses", "version", "revision", "base.name")
_CHECKED = ("gateway", "dispatcher", "worker")
"""The services, which have a health check; the command line ends by itself."""
_BUILD_TOOLS = ("gcc", "cc", "make", "git")
_CONFINED = ("--rm", "--read-only", "--cap-drop", "ALL", "--network", "none",
             "--security-opt", "no-new-privileges:true", "--tmpfs", "/tmp")  # noqa: S108 # fmt: skip
_INSIDE = f"""
import importlib.metadata, json, os, shutil
print(json.dumps({{
    "user": os.getuid(),
    "tools": [tool for tool in {_BUILD_TOOLS} if shutil.which(tool)]
        + [tool for tool in os.listdir("/opt/modelyard/bin") if tool.startswith("pip")],
    "writable": [at for at in ("/", "/opt/modelyard") if os.access(at, os.W_OK)],
    "versions": {{one.name: one.version for one in importlib.metadata.distributions()}},
}}))
"""
"""Runs in the image, with its own Python."""


@dataclass(frozen=True)
class CheckedImage:
    """An image after its checks."""

    name: str
    size: int
    """Bytes, with the base."""
    own_size: int
    """Bytes beyond the base."""
    faults: list[str] = field(default_factory=list)


def check(docker_host: str, target: str) -> CheckedImage:
    """Try one service's image. Raises `ImagesError` if it does not exist."""
    engine, name = Builder(docker_host), image_of(target)
    image = json.loads(engine.run("image", "inspect", name))[0]
    base = image["Config"]["Labels"].get("org.opencontainers.image.base.name", "")
    base_size = json.loads(engine.run("image", "inspect", base))[0]["Size"]
    faults = [
        *_wrong_configuration(image["Config"], target),
        *_tried(engine, name, ["--version"], lambda out: __version__ in out, "tells its version"),
    ]
    out = engine.run("run", *_CONFINED, "--entrypoint", "python3", name, "-c", _INSIDE)
    inside = json.loads(out)
    if f"{inside['user']}:{inside['user']}" != _USER:
        faults.append(f"it runs as {inside['user']}")
    faults += [f"{tool} is in it" for tool in inside["tools"]]
    faults += [f"{folder} can be written to" for folder in inside["writable"]]
    faults += _wrong_versions(inside["versions"])
    return CheckedImage(name, image["Size"], image["Size"] - base_size, faults)


def _wrong_configuration(config: Mapping[str, object], target: str) -> Sequence[str]:
    labels = config.get("Labels")
    names = labels if isinstance(labels, dict) else {}
    faults = [
        f"it has no label org.opencontainers.image.{one}"
        for one in _LABELS
        if not names.get(f"org.opencontainers.image.{one}")
    ]
    if config.get("User") != _USER:
        faults.append(f"its user is {config.get('User')!r}")
    if bool(config.get("Healthcheck")) != (target in _CHECKED):
        faults.append("a service has to have a health check, the command line none")
    return faults


def _wrong_versions(installed: Mapping[str, str]) -> Sequence[str]:
    """Compare the installed distributions with requirements.lock."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    locked = {_plain(name): version for name, version in pinned} | {"modelyard": __version__}
    return [
        f"{name} {version} is not what requirements.lock names"
        for name, version in installed.items()
        if locked.get(_plain(name)) != version
    ]


def _tried(
    engine: Builder,
    name: str,
    command: Sequence[str],
    right: Callable[[str], bool],
    what: str,
) -> Sequence[str]:
    try:
        out = engine.run("run", *_CONFINED, name, *command)
    except ImagesError as error:
        return [f"{what}: {error}"]
    return [] if right(out) else [f"{what}: {out.strip()}"]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
