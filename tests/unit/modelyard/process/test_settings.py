"""What the three processes have in common: their command lines and their settings."""

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

import pytest

from dispatcher.settings import DispatcherSettings
from gateway.settings import GatewaySettings
from modelyard.process.config.sources import variable
from modelyard.process.settings import ProcessSettings
from worker.settings import WorkerSettings

PROCESSES: list[tuple[str, type[ProcessSettings]]] = [
    ("gateway", GatewaySettings),
    ("dispatcher", DispatcherSettings),
    ("worker", WorkerSettings),
]


@dataclass(frozen=True)
class Said:
    """What a process has said when it ended."""

    returncode: int
    stdout: str
    stderr: str


class Run(Protocol):
    def __call__(self, module: str, *arguments: str, **variables: str) -> Said: ...


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Start the program of a service within this process: it ends before it serves anything."""

    def run(module: str, *arguments: str, **variables: str) -> Said:
        for name in list(os.environ):
            if name.startswith("MODELYARD_"):
                monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            import_module(f"{module}.__main__").main(arguments)
        assert isinstance(ended.value.code, int)
        return Said(ended.value.code, *capsys.readouterr())

    return run


def run_process(
    module: str, *arguments: str, **variables: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={"PATH": "", "PYTHONPATH": ".", **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(("module", "settings"), PROCESSES)
def test_help_lists_every_setting_by_its_variable(
    run: Run, module: str, settings: type[ProcessSettings]
) -> None:
    said = run(module, "--help")
    assert said.returncode == 0
    for name, field in settings.model_fields.items():
        assert f"  {variable(settings, name)}\n" in said.stdout
        assert field.description


def test_help_tells_ranges_and_defaults(run: Run) -> None:
    said = run("dispatcher", "--help").stdout
    assert "before it fails. (1 to 100; default: 3)\n" in said
    assert "sweep's repairs. (above 0 to 60; default: 2.0)\n" in said
    assert "in any case. (default: false)\n" in said


@pytest.mark.parametrize(("module", "_settings"), PROCESSES)
def test_the_version_is_told(module: str, _settings: object) -> None:
    assert run_process(module, "--version").stdout.startswith(f"modelyard-{module} 0.")


@pytest.mark.parametrize(("module", "_settings"), PROCESSES)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MODELYARD_AMQP_URL", "http://canary@h"),
        ("MODELYARD_AMQP_URL", "amqp://canary@h:99999"),
        ("MODELYARD_AMQP_URL", "amqp://u:canary\uff20@h"),
        ("MODELYARD_AMQP_URL", "amqp://u:canary#x@h:1"),
        ("MODELYARD_LOG_LEVEL", "loud"),
    ],
)
def test_a_wrong_setting_is_one_sentence_that_names_it_and_keeps_its_value(
    run: Run, module: str, _settings: object, name: str, value: str
) -> None:
    said = run(module, **{name: value})
    assert said.returncode == 2
    assert said.stderr.startswith(f"modelyard-{module}: {name} is wrong: expected ")
    assert len(said.stderr.splitlines()) == 1
    assert "canary" not in said.stderr


@pytest.mark.parametrize("value", ["mongodb://u:canary\uff20@h", "mongodb://[u:canary@h"])
def test_a_url_that_cant_be_taken_apart_is_not_repeated(run: Run, value: str) -> None:
    said = run("gateway", MODELYARD_MONGO_URL=value)
    assert said.stderr.startswith("modelyard-gateway: MODELYARD_MONGO_URL is wrong: expected ")
    assert "canary" not in said.stderr


def test_a_switch_is_true_or_false(run: Run) -> None:
    said = run("dispatcher", MODELYARD_DISPATCHER_ORPHAN_DRY_RUN="maybe")
    assert said.stderr.endswith("ORPHAN_DRY_RUN is wrong: expected true or false.\n")


@pytest.mark.parametrize("module", ["gateway", "dispatcher"])
def test_a_mongodb_url_that_the_driver_refuses_is_one_sentence(module: str) -> None:
    # A gateway takes its port first, and the usual one may be that of a stack that is up.
    free = {"MODELYARD_GATEWAY_PORT": "0"}
    said = run_process(module, MODELYARD_MONGO_URL="mongodb://u:can/ary@h/x", **free)
    assert said.returncode == 2
    assert len(said.stderr.splitlines()) == 1
    assert "MongoDB's URL" in said.stderr
    assert "ary" not in said.stderr
