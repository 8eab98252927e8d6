"""`deploy/setup.sh` with another program in the place of Docker."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "deploy" / "setup.sh"
DOCKER = """#!/bin/sh
echo "$@" >> "$DOCKER_LOG"
for argument in "$@"; do
    case $argument in *:/secrets) touch "${argument%:/secrets}/some.amqp-url" ;; esac
done
"""


class Setup:
    """The script in a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "deploy"
        self.folder.mkdir()
        shutil.copy(SCRIPT, self.folder)
        self._programs = root / "bin"
        self._programs.mkdir()
        docker = self._programs / "docker"
        docker.write_text(DOCKER)
        docker.chmod(0o755)
        self._root = root
        (root / "docker.sock").touch()
        self._log = root / "docker.log"

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        own = {
            "PATH": f"{self._programs}:/usr/bin:/bin",
            "DOCKER_LOG": str(self._log),
            "MODELYARD_DOCKER_SOCKET": str(self._root / "docker.sock"),
        }
        return subprocess.run(
            [str(self.folder / "setup.sh"), *arguments],
            env=own | environ,
            cwd=self._root,
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def volumes(self) -> set[str]:
        """What was mounted as `/secrets`."""
        words = self._log.read_text().split()
        return {one.removesuffix(":/secrets") for one in words if one.endswith(":/secrets")}


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


def test_a_second_host_without_an_address_is_refused_before_anything_is_written(
    setup: Setup,
) -> None:
    done = setup.run("h1", "h2")
    assert done.returncode == 2
    assert "--address NAME" in done.stderr
    assert [one.name for one in setup.folder.iterdir()] == ["setup.sh"]


@pytest.mark.parametrize("named", [None, "other", "./other", "ABSOLUTE"])
def test_the_folder_of_the_secrets_is_absolute_for_docker(
    setup: Setup, tmp_path: Path, named: str | None
) -> None:
    """Docker takes a relative name for that of a volume."""
    given = str(tmp_path / "away") if named == "ABSOLUTE" else named
    done = setup.run(
        "--address", "a", "h1", "h2", **({"MODELYARD_SECRETS": given} if given else {})
    )
    assert done.returncode == 0, done.stderr
    (volume,) = map(Path, setup.volumes)
    assert volume.is_absolute()
    assert volume == (setup.folder / (given or "secrets"))
    assert (volume / "grafana-password").is_file()
    assert (setup.folder / ".env").is_file()
