"""Why a command did not reach MongoDB."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pymongo.errors import OperationFailure

from modelyard.cli import main as cli
from modelyard.cli.exit_codes import UNAVAILABLE
from modelyard.cli.machine import bootstrap
from modelyard.contract.errors import StoreUnavailableError
from modelyard.store.backup import copies
from modelyard.store.doctor.reaching import reaching, silent

NOBODY = "mongodb://dispatcher:canary@127.0.0.1:1,localhost:1/modelyard?replicaSet=rs0"


@pytest.mark.parametrize("command", [("keys", "bootstrap"), ("database", "backup", "{folder}/b")])
def test_a_command_names_the_server_that_does_not_answer_and_its_setting(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    command: tuple[str, ...],
) -> None:
    monkeypatch.setattr(bootstrap, "STORE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(copies, "_ANSWERS_WITHIN_MS", 50)
    monkeypatch.setenv("MODELYARD_MONGO_URL", NOBODY)
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as exited:
        cli.app([part.format(folder=tmp_path) for part in command])
    assert exited.value.code == UNAVAILABLE
    told = capsys.readouterr().err
    assert told.endswith(
        "MongoDB at 127.0.0.1:1,localhost:1 does not answer; MODELYARD_MONGO_URL, or "
        "MODELYARD_MONGO_URL_FILE, names it.\n"
    )
    assert len(told.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("mongodb://mongo.example/modelyard", "mongo.example:27017"),
        ("mongodb+srv://u:canary@mongo.example/modelyard", "mongo.example"),
        ("mongodb+srv://u:can?ary@mongo.example/modelyard", "u"),
    ],
)
def test_a_server_is_named_without_its_password(url: str, place: str) -> None:
    assert silent(url).message.startswith(f"MongoDB at {place} does not answer;")


def _refused() -> None:
    details = {"errmsg": "Authentication failed.", "code": 18}
    raise OperationFailure("Authentication failed., full error: {}", 18, details)


def _not_now() -> None:
    try:
        _refused()
    except OperationFailure as error:
        raise StoreUnavailableError("MongoDB could not do it now: no primary.") from error


@pytest.mark.parametrize(
    ("failing", "error", "told"),
    [
        (_refused, ValueError, "MongoDB at h:27017 refuses it: Authentication failed. MODELYARD_"),
        (_not_now, StoreUnavailableError, "MongoDB could not do it now: no primary."),
    ],
)
def test_what_the_server_answers_is_told(
    failing: Callable[[], None], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told), reaching("mongodb://u:p@h/x"):
        failing()
