"""Builds the reference images on an engine, even where no container registry can be reached.

`ensure_images` builds only missing images. Every image has a label with a hash of its inputs.
Images that take long to build are kept as tarballs in `var/images`, so that a second engine, or the
same one after its data was removed, only loads them.

The base image is the first of these: the one in MODELYARD_BASE_IMAGE; the local one, if it was made
before; the Dockerfiles' default, if the engine has it or a registry answers within
`REGISTRY_ANSWERS_WITHIN`; a local one, made with debootstrap (root on Debian or Ubuntu). Images on
this machine come first, so a machine without a network does not wait for one.
"""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.local.builder import INPUTS_LABEL, Builder, ImagesError, Progress, run
from deploy.local.locks import exclusive
from deploy.local.packages import Need, ensure, find_program

BASE = "modelyard/base:local"
DIGITS = "modelyard/digits:local"
PROBE = "modelyard/probe:local"
FAST = "modelyard/fast:local"
IMAGES = (DIGITS, PROBE)
"""What a stack has at hand; `FAST` is for the benchmarks only."""

_SOURCES = Path(__file__).resolve().parents[1] / "images"
_CACHE = Path(__file__).resolve().parents[2] / "var" / "images"
_REGISTRY_BASE = "python:3.12-slim"
_HELD_OUT = "/opt/model/artifacts/held_out"

_DEBOOTSTRAP = Need("debootstrap", "debootstrap", "makes a base image without a registry")
_SUITE = "bookworm"
_PACKAGES = "python3,python3-venv,ca-certificates"
_NOT_IN_BASE = ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man",
                "usr/share/locale", "proc", "sys", "dev")  # fmt: skip
_BASE_RECIPE = " ".join(("1", _SUITE, _PACKAGES, *_NOT_IN_BASE))

# Seconds.
_COPY = 300.0
_PULL = 1800.0
_BUILD = 1800.0
_TURN = 3600.0
"""One command at a time makes images: the engines of one machine share the cache."""


@dataclass(frozen=True, slots=True)
class Base:
    """An image to build on."""

    image: str
    identity: (
        str  # hashed into images built from it; the same on every engine, unlike the image's id
    )


def ensure_images(
    docker_host: str,
    progress: Progress,
    *,
    which: Sequence[str] = IMAGES,
    base_image: str | None = None,
    cache: Path = _CACHE,
) -> None:
    """Build or load the images `which` (also `FAST`), unless the engine has them up to date.

    `base_image` is MODELYARD_BASE_IMAGE; None takes it from the environment. Blocks for seconds if
    all images are on the engine or in `cache`, else for some minutes. Raises `ImagesError`.
    """
    unknown = set(which) - {*IMAGES, FAST}
    if unknown:
        raise ImagesError(f"There are no images {', '.join(sorted(unknown))}.")
    engine = Builder(docker_host)
    with exclusive(cache / ".lock", _TURN):
        base = _ensure_base(engine, progress, cache, _asked(base_image))
        for tag in which:
            _ensure_built(engine, progress, cache, base, tag)


def ensure_base(docker_host: str, progress: Progress, *, cache: Path = _CACHE) -> Base:
    """Return the image to build on, after pulling or making it if the engine has none."""
    with exclusive(cache / ".lock", _TURN):
        return _ensure_base(Builder(docker_host), progress, cache, _asked())


def _asked(base_image: str | None = None) -> str | None:
    return base_image or os.environ.get("MODELYARD_BASE_IMAGE") or None


def export_dataset(docker_host: str, target: Path) -> None:
    """Copy the held-out digits out of the digits image to `target`/held_out.csv, readable by all.

    `target` is replaced in one step, unless it has the same contents already.
    """
    engine = Builder(docker_host)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        fresh = Path(scratch) / "fresh"
        container = engine.run("create", DIGITS).strip()
        try:
            engine.run("cp", f"{container}:{_HELD_OUT}", str(fresh))
        finally:
            engine.run("rm", "--force", container)
        if target.is_dir() and hash_folder(target) == hash_folder(fresh):
            return
        fresh.chmod(0o755)
        for file in fresh.iterdir():
            file.chmod(0o644)
        if target.exists():
            target.rename(Path(scratch) / "old")
        fresh.rename(target)


def _ensure_base(engine: Builder, progress: Progress, cache: Path, asked: str | None) -> Base:
    if asked is not None:
        if not engine.has(asked):
            progress(f"{asked}: pulling")
            engine.run("pull", asked, deadline=_PULL)
        return Base(asked, asked)
    inputs = digest(_BASE_RECIPE)
    local = Base(BASE, inputs)
    if engine.made_from(BASE) == inputs:
        return local
    tarball = cache / f"base-{inputs}.tar"
    if not tarball.exists():
        if engine.has(_REGISTRY_BASE):
            return Base(_REGISTRY_BASE, _REGISTRY_BASE)
        progress(f"{_REGISTRY_BASE}: asking the registry")
        if engine.pull(_REGISTRY_BASE):
            return Base(_REGISTRY_BASE, _REGISTRY_BASE)
        progress("no registry answers; making a base image with debootstrap")
        _make_base(tarball, progress)
    progress(f"{BASE}: importing")
    engine.run(
        "import", "--change", f"LABEL {INPUTS_LABEL}={inputs}", "--change", 'CMD ["python3"]',
        str(tarball), BASE, deadline=_COPY,
    )  # fmt: skip
    return local


def _make_base(tarball: Path, progress: Progress) -> None:
    """Make a minimal Debian with Python as a tarball."""
    if os.geteuid() != 0 or find_program("apt-get") is None:
        raise ImagesError(
            "There is no base image to build on: no container registry answers, and only root on "
            "Debian or Ubuntu can make one. Set MODELYARD_BASE_IMAGE to an image with "
            "Python 3.11 or later that this engine has, or make a registry reachable."
        )
    ensure((_DEBOOTSTRAP,), progress)
    with tempfile.TemporaryDirectory(dir=tarball.parent, prefix=".base.") as scratch:
        root = Path(scratch) / "root"
        progress(f"{BASE}: debootstrap {_SUITE} (about a minute)")
        # In a mount namespace of its own, so that no mount below `root` outlives it.
        run(
            ["unshare", "--mount", "--propagation", "private", "debootstrap",
             "--variant=minbase", f"--include={_PACKAGES}", _SUITE, str(root)],
            _BUILD, _every(5.0, lambda line: progress(f"{BASE}: {line}")),
        )  # fmt: skip
        partial = Path(scratch) / "base.tar"
        excludes = [f"--exclude=./{folder}/*" for folder in _NOT_IN_BASE]
        run(["tar", "-C", str(root), *excludes, "-cf", str(partial), "."], _COPY)
        _put(partial, tarball)


def _ensure_built(engine: Builder, progress: Progress, cache: Path, base: Base, tag: str) -> None:
    name = tag.partition("/")[2].partition(":")[0]
    source = _SOURCES / name
    inputs = digest(base.identity, hash_folder(source))
    if engine.made_from(tag) == inputs:
        return
    tarball = cache / f"{name}-{inputs}.tar"
    if tarball.exists():
        progress(f"{tag}: loading")
        engine.run("load", "--quiet", "--input", str(tarball), deadline=_COPY)
        return
    progress(f"{tag}: building")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=cache, prefix=f".{name}.") as scratch:
        context = Path(scratch) / "context"
        shutil.copytree(source, context, ignore=shutil.ignore_patterns("__pycache__"))
        engine.build(
            tag, context, progress,
            base=base.image, options=("--label", f"{INPUTS_LABEL}={inputs}"),
        )  # fmt: skip
        if tag == DIGITS:  # building the probe is faster than loading it
            partial = Path(scratch) / "image.tar"
            engine.run("save", "--output", str(partial), tag, deadline=_COPY)
            _put(partial, tarball)
    progress(f"{tag}: built in {time.monotonic() - started:.0f} s")


def _put(partial: Path, tarball: Path) -> None:
    """Move a complete tarball into the cache, then remove the tarballs that it replaces."""
    partial.replace(tarball)
    name = tarball.name.partition("-")[0]
    for old in tarball.parent.glob(f"{name}-*.tar"):
        if old != tarball:
            old.unlink()


def _every(seconds: float, progress: Progress) -> Progress:
    """Return a progress function that passes on at most one line in `seconds`."""
    last = time.monotonic()

    def say(line: str) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            progress(line)

    return say


def hash_folder(folder: Path) -> str:
    """Hash the names and contents of all files in a folder, except compiled modules."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    parts: list[str | bytes] = []
    for file in files:
        if "__pycache__" not in file.parts:
            parts += [str(file.relative_to(folder)), file.read_bytes()]
    return digest(*parts)


def hash_inputs(identity: str, *paths: Path) -> str:
    """Hash the base of an image and the files and folders that it is built from."""
    parts = [hash_folder(path) if path.is_dir() else digest(path.read_bytes()) for path in paths]
    return digest(identity, *parts)


def digest(*parts: str | bytes) -> str:
    """Hash the parts with their lengths, so that moving text between parts changes the hash."""
    whole = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        whole.update(len(raw).to_bytes(8, "big"))
        whole.update(raw)
    return whole.hexdigest()[:16]
