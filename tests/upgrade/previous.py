"""The code of the last release, out of the history of this repository."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMED_IN = Path("deploy/PREVIOUS_RELEASE")
PACKAGES = ("modelyard", "gateway", "dispatcher", "worker")


class NoPreviousReleaseError(Exception):
    """The code of the last release can't be had; says what to do."""


def unpack(target: Path, *, root: Path = ROOT) -> Path:
    """Write the packages of the release that `deploy/PREVIOUS_RELEASE` names below `target`.

    It runs with the libraries of this environment, which have to suit both versions. Raises
    `NoPreviousReleaseError`.
    """
    release = (root / NAMED_IN).read_text().strip()
    tar = target / "previous.tar"
    target.mkdir(parents=True, exist_ok=True)
    _run("git", "-C", str(root), "archive", f"--output={tar}", release, *PACKAGES, release=release)
    _run("tar", "--extract", f"--file={tar}", f"--directory={target}", release=release)
    tar.unlink()
    return target


def _run(*command: str, release: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        raise NoPreviousReleaseError(
            f"{NAMED_IN} names {release}, which is not to be had: {done.stderr.decode().strip()}\n"
            "These tests need the history of the repository: `git fetch --unshallow --tags`."
        )


def origin(module: str, root: Path) -> Path:
    """Return the file that `python -m MODULE` runs in this folder."""
    code = f"import importlib.util; print(importlib.util.find_spec({module!r}).origin)"
    # As `-m` does, `-c` puts the working folder before what is installed.
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    return Path(found.stdout.strip())
