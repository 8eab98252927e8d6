"""The worker's settings and what it says to somebody who got one wrong."""

import pytest

from worker.__main__ import main
from worker.settings import Reach, WorkerSettings

VARIABLES = (
    "MODELYARD_AMQP_URL",
    "MODELYARD_HOST_ID",
    "DOCKER_HOST",
    "MODELYARD_WORKER_SLOTS",
    "MODELYARD_WORKER_LABELS",
    "MODELYARD_WORKER_DATASET_ROOTS",
    "MODELYARD_WORKER_ALLOWED_IMAGES",
    "MODELYARD_WORKER_REACH",
    "MODELYARD_WORKER_NETWORK",
    "MODELYARD_WORKER_RUNTIME_DIR",
)


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_without_any_setting_the_defaults_are_sane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_HOST_ID", "h")
    settings = WorkerSettings()
    assert settings.docker_url == "unix:///var/run/docker.sock"
    assert settings.worker_slots == 4
    assert settings.worker_dataset_roots == ()
    assert settings.worker_allowed_images == ("*",)
    assert settings.worker_reach is Reach.PUBLISHED
    assert settings.plan_rules().pids_limit == 256


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_HOST_ID", "gpu-7")
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/other.sock")
    monkeypatch.setenv("MODELYARD_WORKER_LABELS", '{"zone": "a"}')
    monkeypatch.setenv("MODELYARD_WORKER_DATASET_ROOTS", '["/srv/data"]')
    monkeypatch.setenv("MODELYARD_WORKER_REACH", "network")
    settings = WorkerSettings()
    assert settings.host_id == "gpu-7"
    assert settings.docker_url == "unix:///run/other.sock"
    assert settings.worker_labels == {"zone": "a"}
    assert settings.worker_dataset_roots == ("/srv/data",)
    assert not settings.plan_rules().publish


def test_the_password_of_the_broker_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_AMQP_URL", "amqp://u:canary@h/")
    assert "canary" not in repr(WorkerSettings(host_id="h"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MODELYARD_HOST_ID", "../x"),
        ("MODELYARD_HOST_ID", "gpu-7.control"),
        ("MODELYARD_WORKER_SLOTS", "many"),
        ("MODELYARD_WORKER_SLOTS", "-1"),
        ("DOCKER_HOST", "/run/docker.sock"),
        ("MODELYARD_WORKER_ALLOWED_IMAGES", '["*.example/x"]'),
        ("MODELYARD_WORKER_DATASET_ROOTS", '["relative"]'),
        ("MODELYARD_WORKER_DATASET_ROOTS", '["/"]'),
        ("MODELYARD_WORKER_DATASET_ROOTS", '["/./"]'),
        ("MODELYARD_WORKER_DATASET_ROOTS", '["/a/../."]'),
        ("MODELYARD_WORKER_DATASET_ROOTS", '["//"]'),
        ("MODELYARD_WORKER_LABELS", "not json"),
        ("MODELYARD_WORKER_NETWORK", "host"),
        ("MODELYARD_WORKER_NETWORK", "none"),
        ("MODELYARD_WORKER_NETWORK", "bridge"),
        ("MODELYARD_WORKER_NETWORK", "default"),
    ],
)
def test_a_bad_setting_is_one_sentence_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("modelyard-worker: ")
    assert len(said.splitlines()) == 1


def test_help_lists_every_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    for name in VARIABLES:
        assert name in said
