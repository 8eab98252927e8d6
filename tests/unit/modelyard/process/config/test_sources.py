"""Settings come from the environment, else from a TOML file, else from their defaults."""

import os
from pathlib import Path

import pytest

from dispatcher.settings import DispatcherSettings
from gateway.settings import AuthMethod, GatewaySettings
from modelyard.cli.machine.settings import CommandLineSettings, StoreCommandSettings
from modelyard.process.config.sources import (
    MAX_CONFIG_BYTES,
    MAX_SECRET_BYTES,
    ConfigFile,
    Origin,
    OriginKind,
    WrongSettingsError,
)
from modelyard.process.settings import read_settings
from worker.settings import WorkerSettings

WORKER = """
host_id = "gpu-7"
docker_host = "unix:///run/other.sock"
worker_slots = 4
worker_memory = "64g"
worker_allowed_images = ["registry.example/team/*"]
worker_labels = { gpu = "a100" }

[[worker_devices]]
uuid = "GPU-1"
memory = "40g"
"""


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("MODELYARD_") or name == "DOCKER_HOST":
            monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where the configuration is: the test writes it."""
    file = tmp_path / "modelyard.toml"
    monkeypatch.setenv("MODELYARD_CONFIG", str(file))
    return file


def test_the_file_has_values_of_toml_and_its_keys_are_the_variables_without_the_prefix(
    file: Path,
) -> None:
    file.write_text(WORKER)
    settings = read_settings(WorkerSettings)
    assert settings.host_id == "gpu-7"
    assert settings.docker_url == "unix:///run/other.sock"
    assert settings.worker_slots == 4
    assert settings.worker_memory == 64 << 30
    assert settings.worker_allowed_images == ("registry.example/team/*",)
    assert settings.worker_labels == {"gpu": "a100"}
    assert settings.worker_devices is not None
    assert [one.memory for one in settings.worker_devices] == [40 << 30]


def test_the_file_of_each_service_is_read(file: Path) -> None:
    file.write_text('auth = "keys"\ngateway_host = "0.0.0.0"\n')
    assert read_settings(GatewaySettings).auth == {AuthMethod.KEYS}
    file.write_text('dispatcher_gateway_users = ["gateway", "gateway-2"]\n')
    assert read_settings(DispatcherSettings).dispatcher_gateway_users == ("gateway", "gateway-2")
    file.write_text('url = "https://modelyard.example"\n')
    assert read_settings(CommandLineSettings).url == "https://modelyard.example"


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(WORKER)
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/third.sock")
    monkeypatch.setenv("MODELYARD_WORKER_LABELS", '{"zone": "a"}')
    settings = read_settings(WorkerSettings)
    assert settings.docker_url == "unix:///run/third.sock"
    assert settings.worker_labels == {"zone": "a"}
    assert settings.worker_slots == 4
    origins = WorkerSettings.origins()
    assert origins["docker_url"] == Origin(OriginKind.ENVIRONMENT, "DOCKER_HOST")
    assert origins["worker_slots"] == Origin(OriginKind.FILE, "worker_slots", str(file))
    assert origins["log_level"] == Origin(OriginKind.DEFAULT)
    assert set(origins) == set(WorkerSettings.model_fields)


def test_a_setting_with_a_name_of_its_own_has_no_second_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MODELYARD_DOCKER_URL", "unix:///run/other.sock")
    assert read_settings(WorkerSettings).docker_url == "unix:///var/run/docker.sock"


def test_a_secret_is_read_from_the_file_that_a_variable_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "amqp"
    secret.write_text("amqp://worker:pass word@mq.example/\n")
    monkeypatch.setenv("MODELYARD_AMQP_URL_FILE", str(secret))
    settings = read_settings(WorkerSettings)
    assert settings.amqp_url.get_secret_value() == "amqp://worker:pass word@mq.example/"
    assert WorkerSettings.origins()["amqp_url"] == Origin(
        OriginKind.ENVIRONMENT, "MODELYARD_AMQP_URL_FILE", secret_file=str(secret)
    )


def test_a_secret_is_read_from_the_file_that_the_toml_file_names_from_its_own_folder(
    file: Path,
) -> None:
    (file.parent / "key").write_text("my_key")
    file.write_text('api_key_file = "key"\n')
    key = read_settings(CommandLineSettings).api_key
    assert key is not None
    assert key.get_secret_value() == "my_key"
    assert CommandLineSettings.origins()["api_key"].secret_file == str(file.parent / "key")


def test_a_file_of_a_secret_in_the_environment_wins_over_the_toml_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file.parent / "key").write_text("my_key")
    file.write_text('api_key = "another"\n')
    monkeypatch.setenv("MODELYARD_API_KEY_FILE", str(file.parent / "key"))
    key = read_settings(CommandLineSettings).api_key
    assert key is not None
    assert key.get_secret_value() == "my_key"


@pytest.mark.parametrize("named_by", ["MODELYARD_API_KEY", "MODELYARD_API_KEY_FILE"])
def test_a_file_that_the_environment_overrides_is_not_read(
    file: Path, monkeypatch: pytest.MonkeyPatch, named_by: str
) -> None:
    # systemd hands the secret to the service, whose user can't read the file that root's TOML names
    (file.parent / "key").write_text("my_key")
    file.write_text('api_key_file = "absent"\n')
    is_file = named_by.endswith("_FILE")
    monkeypatch.setenv(named_by, str(file.parent / "key") if is_file else "my_key")
    key = read_settings(CommandLineSettings).api_key
    assert key is not None
    assert key.get_secret_value() == "my_key"
    assert CommandLineSettings.origins()["api_key"].name == named_by


def test_a_secret_that_the_environment_overrides_is_still_given_once(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('api_key = "a"\napi_key_file = "absent"\n')
    monkeypatch.setenv("MODELYARD_API_KEY", "my_key")
    with pytest.raises(WrongSettingsError, match="api_key and its file are both set"):
        read_settings(CommandLineSettings)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("worker_slotz = 4", "has keys that are no settings: worker_slotz (perhaps worker_slots?)"),
        ("[worker]\nslots = 4", "has keys that are no settings: worker."),
        ("gateway_port = 1", "has keys that are no settings: gateway_port."),
        ("worker_slots = -1", ": worker_slots is wrong: expected greater than or equal to 0."),
        ("worker_slots = [", "is not valid TOML: "),
        ('docker_host = "ftp://x"', ": docker_host is wrong: expected a URL that begins with"),
        ('amqp_url = "http://canary@h"', ": amqp_url is wrong: expected a URL that begins with"),
        ('amqp_url = "a"\namqp_url_file = "b"', "amqp_url and its file are both set"),
        ("amqp_url_file = 7", ": amqp_url_file is wrong: expected the path of a file."),
        ('amqp_url_file = "absent"', "/absent) can't be read: No such file or directory."),
        ("x = 1 # " + "x" * MAX_CONFIG_BYTES, "is larger than 1024 KiB"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence_that_names_file_and_key(
    file: Path, content: str, said: str
) -> None:
    file.write_text(content)
    with pytest.raises(WrongSettingsError) as raised:
        read_settings(WorkerSettings)
    assert str(raised.value).startswith(str(file))
    assert said in str(raised.value)
    assert "canary" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_text_is_refused(file: Path) -> None:
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(WrongSettingsError, match="is not UTF-8 text"):
        read_settings(WorkerSettings)


def test_a_file_that_is_named_and_does_not_exist_is_an_error(file: Path) -> None:
    with pytest.raises(WrongSettingsError, match=f"{file} does not exist; MODELYARD_CONFIG names"):
        read_settings(WorkerSettings)
    file.mkdir()
    with pytest.raises(WrongSettingsError, match=f"{file} is not a file; MODELYARD_CONFIG names"):
        read_settings(WorkerSettings)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "the file is empty"),
        ("http://canary@h", "expected a URL that begins with amqp://"),
        ("x" * (MAX_SECRET_BYTES + 1), "is larger than 64 KiB"),
    ],
)
def test_a_wrong_secret_names_its_variable_and_its_file_and_not_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, said: str
) -> None:
    secret = tmp_path / "amqp"
    secret.write_text(content)
    monkeypatch.setenv("MODELYARD_AMQP_URL_FILE", str(secret))
    with pytest.raises(WrongSettingsError) as raised:
        read_settings(WorkerSettings)
    assert str(raised.value).startswith(f"MODELYARD_AMQP_URL_FILE ({secret})")
    assert said in str(raised.value)
    assert "canary" not in str(raised.value)


def test_a_secret_is_given_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_AMQP_URL", "amqp://h")
    monkeypatch.setenv("MODELYARD_AMQP_URL_FILE", str(tmp_path / "amqp"))
    with pytest.raises(WrongSettingsError, match="MODELYARD_AMQP_URL_FILE are both set"):
        read_settings(WorkerSettings)


def test_only_secrets_have_files_of_their_own(file: Path) -> None:
    file.write_text('host_id_file = "x"\n')
    with pytest.raises(WrongSettingsError, match="no settings: host_id_file"):
        read_settings(WorkerSettings)


def test_a_command_may_read_the_database_from_the_file_of_a_service(file: Path) -> None:
    file.write_text('mongo_url = "mongodb://db.example/x"\ndispatcher_max_attempts = 5\n')
    settings = read_settings(StoreCommandSettings)
    assert settings.mongo_url.get_secret_value() == "mongodb://db.example/x"


def test_without_a_file_nothing_is_read() -> None:
    assert ConfigFile(WorkerSettings, None)() == {}
