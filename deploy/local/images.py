"""Builds the reference images on an engine, even where no container registry can be reached.

`ensure_images` builds only missing images. Every image has a label with a hash of its inputs.
Images that take long to build are kept as tarballs in `var/images`, so that a second engine, or the
same one after its data was removed, only loads them.

The base image is the first of these: the one in MODELYARD_BASE_IMAGE; the local one, if it was made
before; the Dockerfiles' default, if the engine has it or a registry answers within
`_REGISTRY_ANSWERS_WITHIN`; a local one, made with debootstrap (root on Debian or Ubuntu). Images on
this machine come first, so a machine without a network does not wait for one.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.local.errors import StackError
from deploy.local.locks import exclusive
from deploy.local.packages import Need, ensure, find_program

Progress = Callable[[str], None]

BASE = "modelyard/base:local"
DIGITS = "modelyard/digits:local"
PROBE = "modelyard/probe:local"
FAST = "modelyard/fast:local"
IMAGES = (DIGITS, PROBE)
"""What a stack has at hand; `FAST` is for the benchmarks only."""

_SOURCES = Path(__file__).resolve().parents[1] / "images"
_CACHE = Path(__file__).resolve().parents[2] / "var" / "images"
_REGISTRY_BASE = "python:3.12-slim"
_INPUTS_LABEL = "modelyard.inputs"
_HELD_OUT = "/opt/model/artifacts/held_out"
_CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")

_DEBOOTSTRAP = Need("debootstrap", "debootstrap", "makes a base image without a registry")
_SUITE = "bookworm"
_PACKAGES = "python3,python3-venv,ca-certificates"
_NOT_IN_BASE = ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man",
                "usr/share/locale", "proc", "sys", "dev")  # fmt: skip
_BASE_RECIPE = " ".join(("1", _SUITE, _PACKAGES, *_NOT_IN_BASE))

# Seconds.
_REGISTRY_ANSWERS_WITHIN = 15.0
_SHORT = 60.0
_COPY = 300.0
_PULL = 1800.0
_BUILD = 1800.0
_TURN = 3600.0


class ImagesError(StackError):
    """An image could not be built; the message says why and what would help."""


@dataclass(frozen=True, slots=True)
class _Base:
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
    engine = _Engine(docker_host)
    # One at a time: the engines of one machine share the cache.
    with exclusive(cache / ".lock", _TURN):
        asked = base_image or os.environ.get("MODELYARD_BASE_IMAGE") or None
        base = _ensure_base(engine, progress, cache, asked)
        for tag in which:
            _ensure_built(engine, progress, cache, base, tag)


def export_dataset(docker_host: str, target: Path) -> None:
    """Copy the held-out digits out of the digits image to `target`/held_out.csv, readable by all.

    `target` is replaced in one step, unless it has the same contents already.
    """
    engine = _Engine(docker_host)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        fresh = Path(scratch) / "fresh"
        container = engine.run("create", DIGITS).strip()
        try:
            engine.run("cp", f"{container}:{_HELD_OUT}", str(fresh))
        finally:
            engine.run("rm", "--force", container)
        if target.is_dir() and _hash_folder(target) == _hash_folder(fresh):
            return
        fresh.chmod(0o755)
        for file in fresh.iterdir():
            file.chmod(0o644)
        if target.exists():
            target.rename(Path(scratch) / "old")
        fresh.rename(target)


class _Engine:
    """One Docker engine, used through the `docker` command."""

    def __init__(self, docker_host: str) -> None:
        self._host = docker_host

    def run(
        self,
        *arguments: str,
        deadline: float = _SHORT,
        on_line: Progress | None = None,
    ) -> str:
        # The classic builder, which engine 20.10 has; the newer one needs a plugin.
        env = {**os.environ, "DOCKER_BUILDKIT": "0"}
        return _run(["docker", "-H", self._host, *arguments], deadline, on_line, env)

    def has(self, image: str) -> bool:
        return self._labels(image) is not None

    def made_from(self, image: str) -> str | None:
        """Return the hash of the image's inputs, from its label."""
        return (self._labels(image) or {}).get(_INPUTS_LABEL)

    def _labels(self, image: str) -> dict[str, str] | None:
        try:
            found = self.run("image", "inspect", "--format", "{{json .Config.Labels}}", image)
        except ImagesError as error:
            if "no such image" in str(error).lower():
                return None
            raise
        labels: dict[str, str] | None = json.loads(found)
        return labels or {}

    def pull(self, image: str) -> bool:
        """Pull an image; False if no registry answers in time or it does not have the image."""
        command = ["docker", "-H", self._host, "pull", image]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as pull:
            assert pull.stdout is not None  # noqa: S101 - for the type checker: it is a pipe
            first_line_timer = threading.Timer(_REGISTRY_ANSWERS_WITHIN, pull.kill)
            pull_timer = threading.Timer(_PULL, pull.kill)
            first_line_timer.start()
            pull_timer.start()
            try:
                # The first line appears when the registry has sent the manifest.
                for _line in pull.stdout:
                    first_line_timer.cancel()
            finally:
                first_line_timer.cancel()
                pull_timer.cancel()
        return pull.returncode == 0


def _ensure_base(engine: _Engine, progress: Progress, cache: Path, asked: str | None) -> _Base:
    if asked is not None:
        if not engine.has(asked):
            progress(f"{asked}: pulling")
            engine.run("pull", asked, deadline=_PULL)
        return _Base(asked, asked)
    inputs = _digest(_BASE_RECIPE)
    local = _Base(BASE, inputs)
    if engine.made_from(BASE) == inputs:
        return local
    tarball = cache / f"base-{inputs}.tar"
    if not tarball.exists():
        if engine.has(_REGISTRY_BASE):
            return _Base(_REGISTRY_BASE, _REGISTRY_BASE)
        progress(f"{_REGISTRY_BASE}: asking the registry")
        if engine.pull(_REGISTRY_BASE):
            return _Base(_REGISTRY_BASE, _REGISTRY_BASE)
        progress("no registry answers; making a base image with debootstrap")
        _make_base(tarball, progress)
    progress(f"{BASE}: importing")
    engine.run(
        "import", "--change", f"LABEL {_INPUTS_LABEL}={inputs}", "--change", 'CMD ["python3"]',
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
        _run(
            ["unshare", "--mount", "--propagation", "private", "debootstrap",
             "--variant=minbase", f"--include={_PACKAGES}", _SUITE, str(root)],
            _BUILD, _every(5.0, lambda line: progress(f"{BASE}: {line}")),
        )  # fmt: skip
        partial = Path(scratch) / "base.tar"
        excludes = [f"--exclude=./{folder}/*" for folder in _NOT_IN_BASE]
        _run(["tar", "-C", str(root), *excludes, "-cf", str(partial), "."], _COPY)
        _put(partial, tarball)


def _ensure_built(engine: _Engine, progress: Progress, cache: Path, base: _Base, tag: str) -> None:
    name = tag.partition("/")[2].partition(":")[0]
    source = _SOURCES / name
    inputs = _digest(base.identity, _hash_folder(source))
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
        if _CA_BUNDLE.exists():
            shutil.copyfile(_CA_BUNDLE, context / "build-ca.crt")
        engine.run(
            "build", "--network=host", "--tag", tag, "--label", f"{_INPUTS_LABEL}={inputs}",
            "--build-arg", f"BASE_IMAGE={base.image}", *_network_arguments(), str(context),
            deadline=_BUILD,
            on_line=lambda line: progress(f"{tag}: {line[:80]}") if line[:5] == "Step " else None,
        )  # fmt: skip
        if tag == DIGITS:  # building the probe is faster than loading it
            partial = Path(scratch) / "image.tar"
            engine.run("save", "--output", str(partial), tag, deadline=_COPY)
            _put(partial, tarball)
    progress(f"{tag}: built in {time.monotonic() - started:.0f} s")


def _network_arguments() -> list[str]:
    """Return build arguments about the network; docker takes their values from our environment."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
             "PIP_INDEX_URL")  # fmt: skip
    return [word for name in names if name in os.environ for word in ("--build-arg", name)]


def _put(partial: Path, tarball: Path) -> None:
    """Move a complete tarball into the cache, then remove the tarballs that it replaces."""
    partial.replace(tarball)
    name = tarball.name.partition("-")[0]
    for old in tarball.parent.glob(f"{name}-*.tar"):
        if old != tarball:
            old.unlink()


def _run(
    command: Sequence[str],
    deadline: float,
    on_line: Progress | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a command and return its output (both streams); raises `ImagesError` with its end."""
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env,
            errors="replace",
        )  # fmt: skip
    except FileNotFoundError:
        raise ImagesError(f"The command {command[0]} is missing.") from None
    late = threading.Event()

    def end_it() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(deadline, end_it)
    timer.start()
    lines: deque[str] = deque(maxlen=2000)
    try:
        with process:
            assert process.stdout is not None  # noqa: S101 - for the type checker: it is a pipe
            for line in process.stdout:
                lines.append(line)
                if on_line is not None:
                    on_line(line.rstrip())
    finally:
        timer.cancel()
    if process.returncode != 0:
        why = f"took more than {deadline:.0f} s" if late.is_set() else "failed"
        end = "".join(list(lines)[-20:]).rstrip()
        raise ImagesError(f"`{' '.join(command[:6])} ...` {why}:\n{end}")
    return "".join(lines)


def _every(seconds: float, progress: Progress) -> Progress:
    """Return a progress function that passes on at most one line in `seconds`."""
    last = time.monotonic()

    def say(line: str) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            progress(line)

    return say


def _hash_folder(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    parts: list[str | bytes] = []
    for file in files:
        if "__pycache__" not in file.parts:
            parts += [str(file.relative_to(folder)), file.read_bytes()]
    return _digest(*parts)


def _digest(*parts: str | bytes) -> str:
    """Hash the parts with their lengths, so that moving text between parts changes the hash."""
    whole = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        whole.update(len(raw).to_bytes(8, "big"))
        whole.update(raw)
    return whole.hexdigest()[:16]
