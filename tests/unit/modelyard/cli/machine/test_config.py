"""`modelyard config show` says what is in force, and from where."""

import json
import os
from pathlib import Path

import pytest

from modelyard.cli import app


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("MODELYARD_") or name == "DOCKER_HOST":
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        app(list(arguments))
    return int(ended.value.code or 0)


@pytest.mark.parametrize("service", ["gateway", "dispatcher", "worker"])
def test_every_setting_of_a_service_is_shown_with_its_value_and_its_origin(
    service: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, secret = tmp_path / "modelyard.toml", tmp_path / "amqp"
    secret.write_text("amqp://me:canary@mq.example/v")
    file.write_text('amqp_url_file = "amqp"\n')
    monkeypatch.setenv("MODELYARD_CONFIG", str(file))
    monkeypatch.setenv("MODELYARD_LOG_LEVEL", "debug")
    assert run("config", "show", "--service", service, "--json") == 0
    shown = capsys.readouterr().out
    assert "canary" not in shown
    found = {one.pop("setting"): one for one in json.loads(shown)}
    assert found["MODELYARD_AMQP_URL"] == {
        "value": "amqp://me:***@mq.example/v",
        "from": "file",
        "name": "amqp_url_file",
        "file": str(file),
        "secret_file": str(secret),
    }
    nowhere = {"file": None, "secret_file": None}
    assert found["MODELYARD_LOG_LEVEL"] == {
        "value": "debug",
        "from": "environment",
        "name": "MODELYARD_LOG_LEVEL",
        **nowhere,
    }
    assert found["MODELYARD_LOG_FORMAT"] == {
        "value": "auto",
        "from": "default",
        "name": None,
        **nowhere,
    }


def test_without_a_service_it_shows_the_command_lines_own_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MODELYARD_API_KEY", "my_canary")
    assert run("config", "show") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["setting", "value", "from"],
        ["MODELYARD_URL", "http://127.0.0.1:8080", "default"],
        ["MODELYARD_API_KEY", "***", "environment"],
    ]


def test_wrong_settings_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MODELYARD_WORKER_SLOTS", "many")
    assert run("config", "show", "--service", "worker") == 2
    assert "MODELYARD_WORKER_SLOTS is wrong: expected" in capsys.readouterr().err


def test_an_unknown_service_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("config", "show", "--service", "cook") == 2
    assert "'cook' is none of gateway, dispatcher, worker" in capsys.readouterr().err


def test_a_command_takes_the_gateway_and_the_key_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "modelyard.toml"
    file.write_text('url = "http://me:password@127.0.0.1:1"\napi_key = "my_key"\n')
    monkeypatch.setenv("MODELYARD_CONFIG", str(file))
    assert run("hosts") == 2
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "the URL has a user, and there is an API key too" in said
    file.write_text('url = "http://127.0.0.1:1"\napi_key = "not sendable"\n')
    assert run("hosts") == 2
    assert "characters that can't be in a key" in capsys.readouterr().err


def test_a_command_that_needs_the_gateway_says_which_setting_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MODELYARD_CONFIG", str(tmp_path / "absent.toml"))
    assert run("hosts") == 2
    assert "absent.toml does not exist" in capsys.readouterr().err
