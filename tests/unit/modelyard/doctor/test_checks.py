"""Clocks, versions and configurations, as the doctor sees them."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from deploy.local.layout import OWN_ADDRESSES
from gateway.settings import GatewaySettings
from modelyard.cli.machine.settings import CommandLineSettings
from modelyard.doctor.clock import check_offset
from modelyard.doctor.configuration import check_configuration, check_variables
from modelyard.doctor.diagnosis import Verdict, version_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("MODELYARD_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("offset_s", "took_s", "verdict"),
    [(0.2, 0.0, "ok"), (-3.0, 0.0, "warning"), (3.0, 0.0, "warning"), (3.0, 5.0, "ok")],
)
def test_a_clock_is_wrong_if_it_differs_by_more_than_the_answer_took(
    offset_s: float, took_s: float, verdict: str
) -> None:
    after = NOW + timedelta(seconds=took_s)
    theirs = NOW + timedelta(seconds=took_s / 2 + offset_s)
    found = check_offset(theirs, NOW, after, whose="theirs")
    assert found.verdict == verdict
    assert found.seen.startswith(f"{offset_s:+.3f} s from theirs")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("3.12.1", (3, 12, 1)), ("4.0.0-rc.1", (4, 0, 0)), ("1.41", (1, 41)), ("unknown", ())],
)
def test_a_version_is_compared_by_its_numbers(text: str, numbers: tuple[int, ...]) -> None:
    assert version_of(text) == numbers


def test_the_configuration_says_where_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, found = check_configuration(GatewaySettings)
    assert settings is not None
    assert found.seen == "defaults only"
    file = tmp_path / "gateway.toml"
    file.write_text("gateway_port = 0\n")
    monkeypatch.setenv("MODELYARD_CONFIG", str(file))
    monkeypatch.setenv("MODELYARD_LOG_LEVEL", "debug")
    _, found = check_configuration(GatewaySettings)
    assert found.seen == f"2 settings from {file} and the environment"
    file.write_text("gateway_prot = 0\n")
    settings, found = check_configuration(GatewaySettings)
    assert settings is None
    assert found.verdict is Verdict.FAILURE
    assert found.advice


def test_variables_that_set_nothing_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for known in ("MODELYARD_CONFIG", "MODELYARD_URL", "MODELYARD_API_KEY_FILE", OWN_ADDRESSES):
        monkeypatch.setenv(known, "x")
    assert check_variables([CommandLineSettings]) == []
    monkeypatch.setenv("MODELYARD_URI", "x")
    monkeypatch.setenv("MODELYARD_URL_FILE", "x")
    found = check_variables([CommandLineSettings])
    assert [one.seen.split()[0] for one in found] == ["MODELYARD_URI", "MODELYARD_URL_FILE"]
    assert found[0].advice == "Perhaps MODELYARD_URL is meant."
