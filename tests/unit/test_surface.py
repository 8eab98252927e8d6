"""What others hold Modelyard to does not change by accident: see `tests/support/surface.py`."""

import json
from typing import Any

import pytest

from tests.support import surface

WRITTEN: dict[str, Any] = json.loads(surface.SNAPSHOT.read_text())


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return surface.surface()


def test_the_snapshot_has_every_part(found: dict[str, Any]) -> None:
    assert WRITTEN.keys() == found.keys()


@pytest.mark.parametrize("part", sorted(WRITTEN))
def test_the_surface_is_that_of_the_snapshot(part: str, found: dict[str, Any]) -> None:
    assert found[part] == WRITTEN[part]
