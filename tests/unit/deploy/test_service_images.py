"""What the images of the services are built from."""

import tomllib
from pathlib import Path

from deploy.containers import service_images

ROOT = Path(__file__).resolve().parents[3]


def test_an_image_is_built_from_all_that_the_wheel_has() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    folders = {*wheel["packages"], *wheel["shared-data"]}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
    assert folders == set(service_images._FOLDERS)
    assert {f"!{folder}" for folder in folders} <= set(ignored)
    assert {f"COPY {folder} /build/{folder}" for folder in folders} <= set(copied)
