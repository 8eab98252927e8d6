"""Who may say what, by the verified user alone."""

import json
import re
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dispatcher.senders import Senders
from modelyard.broker.connection import user_of
from modelyard.cli.rabbitmq import rabbitmq
from modelyard.contract.rabbitmq import permissions
from modelyard.contract.rabbitmq.definitions import definitions

SENDERS = Senders("dispatcher", gateways=["gateway", "gateway-2"], workers="worker-{host_id}")


@pytest.mark.parametrize("user", ["dispatcher", "gateway", "gateway-2"])
def test_gateways_and_dispatchers_are_trusted(user: str) -> None:
    assert SENDERS.is_trusted(user)
    assert SENDERS.is_dispatcher(user) is (user == "dispatcher")


@pytest.mark.parametrize("user", ["worker-gpu-7", "frontend", "Gateway", "gateway-3", "", None])
def test_nobody_else_is_trusted(user: str | None) -> None:
    assert not SENDERS.is_trusted(user)
    assert not SENDERS.is_dispatcher(user)


@pytest.mark.parametrize(
    ("user", "host_id", "may"),
    [
        ("worker-gpu-7", "gpu-7", True),
        ("dispatcher", "gpu-7", True),
        ("worker-gpu-7", "gpu-77", False),
        ("worker-gpu-77", "gpu-7", False),
        ("worker-gpu-7", "", False),
        ("worker-", "", True),
        ("gateway", "gpu-7", False),
        ("gpu-7", "gpu-7", False),
        (None, "gpu-7", False),
    ],
)
def test_a_worker_speaks_for_the_host_in_its_name(
    user: str | None, host_id: str, *, may: bool
) -> None:
    assert SENDERS.may_speak_for(user, host_id) is may


@pytest.mark.parametrize(
    ("url", "user"),
    [
        ("amqp://worker-gpu-7:secret@rabbit/%2f", "worker-gpu-7"),
        ("amqps://a%40b:c@rabbit", "a@b"),
        ("amqp://rabbit", "guest"),
        ("amqp://:secret@rabbit", "guest"),
    ],
)
def test_the_user_of_an_address_is_who_signs(url: str, user: str) -> None:
    assert user_of(url) == user


def run(folder: Path, *options: str) -> tuple[int, str, str]:
    file = folder / "passwords.json"
    done = CliRunner().invoke(
        rabbitmq,
        ["definitions", f"--passwords={file}", *options],
        catch_exceptions=False,
        env={"COLUMNS": "200"},
    )
    return done.exit_code, done.stdout, done.stderr


def test_passwords_are_made_once_and_kept_to_their_owner(tmp_path: Path) -> None:
    code, _, said = run(tmp_path, "--host=gpu-7")
    assert code == 0
    assert "new passwords for gateway, dispatcher, worker-gpu-7" in said
    file = tmp_path / "passwords.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    first = json.loads(file.read_text())
    assert all(len(one) >= 43 for one in first.values()), "256 bits in base64"
    code, _, said = run(tmp_path, "--host=gpu-7", "--host=gpu-8")
    assert "new passwords for worker-gpu-8" in said
    second = json.loads(file.read_text())
    assert first.items() < second.items()
    assert [one.name for one in tmp_path.iterdir()] == ["passwords.json"]


def test_no_password_is_in_the_document_and_no_user_has_a_tag(tmp_path: Path) -> None:
    _, printed, _ = run(tmp_path, "--host=gpu-7", "--publisher=frontend", "--vhost=models")
    passwords = json.loads((tmp_path / "passwords.json").read_text())
    assert not [one for one in passwords.values() if one in printed]
    document = json.loads(printed)
    assert {one["tags"] for one in document["users"]} == {""}
    assert {one["vhost"] for one in document["permissions"]} == {"models"}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--host=../x"], "no name"),
        (["--host=gpu-7", "--host=gpu-7"], "twice"),
        (["--publisher=gateway"], "twice"),
        (["--host=gpu-7", "--publisher=worker-gpu-7"], "twice"),
        (["--publisher=x", "--subscriber=x"], "twice"),
        (["--subscriber=modelyard"], "modelyard"),
        (["--subscriber=amq"], "amq"),
        (["--subscriber="], "no name"),
        (["--publisher=a b"], "no name"),
    ],
)
def test_what_would_give_more_than_it_says_is_refused(
    tmp_path: Path, options: list[str], word: str
) -> None:
    code, printed, said = run(tmp_path, *options)
    assert (code, printed) == (2, "")
    assert word in said
    assert not (tmp_path / "passwords.json").exists()


@pytest.mark.parametrize("text", ["[", "[]", '{"gateway": 5}'])
def test_a_file_that_holds_no_passwords_is_left_alone(tmp_path: Path, text: str) -> None:
    file = tmp_path / "passwords.json"
    file.write_text(text)
    code, printed, said = run(tmp_path, "--host=gpu-7")
    assert (code, printed) == (2, "")
    assert "passwords" in said
    assert file.read_text() == text


def test_a_name_with_signs_of_an_expression_gives_no_right_to_others() -> None:
    made = permissions.subscriber("a.c")
    document = definitions("/", [made], {"a.c": "x"}, host_ids=[])
    rights = json.loads(json.dumps(document))["permissions"][0]
    assert rights["configure"] == r"^(a\.c\.[^.]+)$"


def test_a_subscriber_has_no_right_to_a_queue_of_one_whose_name_begins_with_its_own() -> None:
    """A queue belongs to the user whose name is all before its last dot, as in `reply_to`."""
    shop = permissions.subscriber("shop")
    for expression in (shop.configure, shop.write, shop.read):
        assert re.search(expression, "shop.answers")
        assert not re.search(expression, "shop.eu.answers")
        assert not re.search(expression, "shop.")
