"""`modelyard rabbitmq urls`: the secret that each process gets."""

import json
import stat
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import pytest
from typer.testing import CliRunner

from modelyard.cli.rabbitmq import rabbitmq


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the passwords of a fleet of one host."""
    passwords = {"gateway": "p/w+1", "dispatcher": "d", "worker-gpu-1": "w"}
    (tmp_path / "passwords.json").write_text(json.dumps(passwords))
    return tmp_path


def urls(folder: Path, *options: str) -> tuple[int, str]:
    where = ["--passwords", str(folder / "passwords.json"), "--folder", str(folder)]
    done = CliRunner().invoke(rabbitmq, ["urls", *where, *options], env={"COLUMNS": "300"})
    return done.exit_code, done.output


def test_each_user_gets_a_file_with_its_url_that_only_we_can_read(folder: Path) -> None:
    code, told = urls(folder, "--broker", "mq.example:5671", "--tls", "--vhost", "fleet")
    assert code == 0
    assert "gateway.amqp-url: the URL of gateway" in told
    assert quote("p/w+1", safe="") not in told
    files = sorted(file.name for file in folder.glob("*.amqp-url"))
    assert files == ["dispatcher.amqp-url", "gateway.amqp-url", "worker-gpu-1.amqp-url"]
    file = folder / "gateway.amqp-url"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    parts = urlsplit(file.read_text().strip())
    assert (parts.scheme, parts.username, unquote(parts.password or "")) == (
        "amqps",
        "gateway",
        "p/w+1",
    )
    assert (parts.hostname, parts.port, parts.path) == ("mq.example", 5671, "/fleet")


def test_a_worker_elsewhere_gets_an_address_of_its_own(folder: Path) -> None:
    assert urls(folder, "--broker", "rabbitmq:5672")[0] == 0
    assert urls(folder, "--broker", "127.0.0.1:5672", "--user", "worker-gpu-1")[0] == 0
    assert "@127.0.0.1:5672/%2F" in (folder / "worker-gpu-1.amqp-url").read_text()
    assert "@rabbitmq:5672/%2F" in (folder / "gateway.amqp-url").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--broker", "mq.example"), "is not HOST:PORT"),
        (("--broker", "a@b:5672"), "is not HOST:PORT"),
        (("--broker", "mq:5672", "--user", "nobody"), "has no password for nobody"),
        (("--broker", "mq:5672", "--folder", "/no/such/folder"), "No such file or directory"),
    ],
)
def test_a_wrong_option_is_named_and_nothing_is_written(
    folder: Path, options: tuple[str, ...], said: str
) -> None:
    code, output = urls(folder, *options)
    assert code == 2
    assert said in output
    assert list(folder.glob("*.amqp-url")) == []


@pytest.mark.parametrize("content", [None, "{}"])
def test_a_file_without_passwords_is_told_with_what_writes_it(
    folder: Path, content: str | None
) -> None:
    passwords = folder / "passwords.json"
    passwords.unlink()
    if content is not None:
        passwords.write_text(content)
    code, told = urls(folder, "--broker", "mq.example:5671")
    assert code == 2
    assert "modelyard rabbitmq definitions" in told
    assert not list(folder.glob("*.amqp-url"))
