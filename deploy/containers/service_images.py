"""Builds the images of Modelyard's services, the targets of `deploy/Dockerfile`."""

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from deploy.local.builder import INPUTS_LABEL, Builder, Progress
from deploy.local.images import ensure_base, hash_inputs
from deploy.local.layout import ROOT
from modelyard import __version__

TARGETS = ("gateway", "dispatcher", "worker", "cli")
STAND_INS = ("rabbitmq", "mongodb", "prometheus")
"""Images of servers, for machines that reach no registry."""
PREFIX = "modelyard"

_DOCKERFILE = ROOT / "deploy" / "Dockerfile"
_FILES = ("pyproject.toml", "requirements.lock", "README.md", "LICENSE")
_SHARED = ("deploy/grafana", "deploy/nginx", "deploy/prometheus", "deploy/systemd")
_FOLDERS = ("modelyard", "gateway", "dispatcher", "worker", *_SHARED)
_STAND_INS = Path(__file__).parent / "stand_ins"
_MONGOD = ROOT / "deploy" / "local" / "requirements.txt"


def image_of(target: str) -> str:
    """Return the name of a service's image."""
    return f"{PREFIX}/{target}:{__version__}"


def stand_in_of(server: str) -> str:
    """Return the name of the image that stands in for a server's own."""
    return f"{PREFIX}/{server}:local"


def ensure_service_images(docker_host: str, progress: Progress) -> None:
    """Build the images whose inputs have changed. Raises `ImagesError`."""
    base = ensure_base(docker_host, progress)
    inputs = hash_inputs(
        base.identity, *(ROOT / name for name in (*_FILES, *_FOLDERS)), _DOCKERFILE
    )
    for target in TARGETS:
        options = ("--target", target, "--build-arg", f"VERSION={__version__}",
                   "--build-arg", f"REVISION={_revision()}")  # fmt: skip
        _ensure(
            Builder(docker_host), image_of(target), inputs, progress,
            fill=_copy_sources, base=base.image, options=options,
        )  # fmt: skip


def ensure_stand_ins(docker_host: str, progress: Progress) -> None:
    """Build the images of servers that this machine can't pull. Raises `ImagesError`."""
    base = ensure_base(docker_host, progress)
    for server in STAND_INS:
        source = _STAND_INS / server

        def fill(context: Path, source: Path = source) -> None:
            shutil.copytree(source, context, dirs_exist_ok=True)
            shutil.copyfile(_MONGOD, context / "requirements.txt")

        inputs = hash_inputs(base.identity, source, _MONGOD)
        _ensure(
            Builder(docker_host), stand_in_of(server), inputs, progress, fill=fill, base=base.image
        )


def _ensure(  # noqa: PLR0913 - private, and all are named
    engine: Builder,
    tag: str,
    inputs: str,
    progress: Progress,
    *,
    fill: Callable[[Path], None],
    base: str,
    options: tuple[str, ...] = (),
) -> None:
    if engine.made_from(tag) == inputs:
        return
    progress(f"{tag}: building")
    with tempfile.TemporaryDirectory(prefix="modelyard-image-") as scratch:
        context = Path(scratch)
        fill(context)
        engine.build(
            tag, context, progress,
            base=base, options=("--label", f"{INPUTS_LABEL}={inputs}", *options),
        )  # fmt: skip


def _copy_sources(context: Path) -> None:
    for name in _FILES:
        shutil.copyfile(ROOT / name, context / name)
    for name in _FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, context / name, ignore=ignored)
    shutil.copyfile(_DOCKERFILE, context / "Dockerfile")


def _revision() -> str:
    """Return the commit that is checked out; `unknown` outside of a checkout."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
