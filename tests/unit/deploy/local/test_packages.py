"""What the local stack says and does about programs that are missing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from deploy.local import packages
from deploy.local.errors import CannotProvide, InstallFailed
from deploy.local.packages import Need

if TYPE_CHECKING:
    from pathlib import Path

PRESENT = Need("sh", "dash", "runs scripts")
MISSING = (
    Need("no-such-broker", "some-broker", "carries the messages"),
    Need("no-such-engine", "some-engine", "runs the containers"),
)


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for the file that tells Debian's packages whether to start services."""
    file = tmp_path / "policy-rc.d"
    monkeypatch.setattr(packages, "POLICY", file)
    return file


@pytest.fixture
def root_on_debian(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(packages, "_is_debian", lambda: True)


def refuse(_line: str) -> None:
    pytest.fail("nothing was to be installed")


def test_nothing_is_said_or_installed_when_all_programs_are_there() -> None:
    packages.ensure([PRESENT], refuse)


def test_an_ordinary_user_gets_one_message_that_lists_all_that_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(CannotProvide) as raised:
        packages.ensure([PRESENT, *MISSING], refuse)
    message = str(raised.value)
    assert "no-such-broker: carries the messages" in message
    assert "no-such-engine: runs the containers" in message
    assert "apt-get install some-broker some-engine" in message
    assert "dash" not in message


def test_root_on_another_distribution_gets_the_same_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(packages, "_is_debian", lambda: False)
    with pytest.raises(CannotProvide, match="apt-get install some-broker some-engine"):
        packages.ensure(MISSING, refuse)


@pytest.mark.usefixtures("root_on_debian")
def test_root_on_debian_installs_what_is_missing_and_says_why_in_one_line(
    policy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[tuple[str, ...]] = []
    during: list[str] = []

    def apt(*arguments: str) -> None:
        calls.append(arguments)
        during.append(policy.read_text())
        for need in MISSING:
            program = tmp_path / need.program
            program.touch(mode=0o755)

    monkeypatch.setattr(packages, "_apt", apt)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    said: list[str] = []
    packages.ensure([PRESENT, *MISSING], said.append)
    assert [call[0] for call in calls] == ["update", "install"]
    assert calls[1][-2:] == ("some-broker", "some-engine")
    assert len(said) == 1
    assert "some-broker (carries the messages)" in said[0]
    assert all("exit 101" in text for text in during)
    assert not policy.exists()


@pytest.mark.usefixtures("root_on_debian")
def test_the_service_policy_of_the_machine_is_put_back_after_a_failed_install(
    policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy.write_text("#!/bin/sh\nexit 0\n")
    policy.chmod(0o750)

    def apt(*_arguments: str) -> None:
        message = "no space left"
        raise InstallFailed(message)

    monkeypatch.setattr(packages, "_apt", apt)
    with pytest.raises(InstallFailed):
        packages.ensure(MISSING, lambda _line: None)
    assert policy.read_text() == "#!/bin/sh\nexit 0\n"
    assert policy.stat().st_mode & 0o7777 == 0o750


@pytest.mark.usefixtures("root_on_debian", "policy")
def test_a_package_without_its_program_is_reported_instead_of_trusted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packages, "_apt", lambda *_arguments: None)
    with pytest.raises(CannotProvide, match="no-such-broker"):
        packages.ensure(MISSING, lambda _line: None)
