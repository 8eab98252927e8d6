"""Which code runs as the last release."""

from pathlib import Path

import pytest

from tests.upgrade.previous import PACKAGES, ROOT, NoPreviousReleaseError, origin, unpack


@pytest.mark.upgrade
def test_each_process_runs_the_code_of_the_version_that_is_meant(previous: Path) -> None:
    for package in PACKAGES:
        for root in (previous, ROOT):
            assert origin(package, root) == root / package / "__init__.py"
    assert previous != ROOT


def test_without_the_history_it_is_said_what_to_do(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    (clone / "deploy").mkdir(parents=True)
    (clone / "deploy/PREVIOUS_RELEASE").write_text("0123456789\n")
    with pytest.raises(NoPreviousReleaseError, match="git fetch --unshallow"):
        unpack(tmp_path / "target", root=clone)
