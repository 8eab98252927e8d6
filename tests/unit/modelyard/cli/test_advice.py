"""What the command line advises after a refusal: only what helps."""

import errno

import pytest

from modelyard.cli import main as cli
from modelyard.cli.exit_codes import FAILED, USAGE
from modelyard.client import ApiError
from modelyard.contract.errors import SENTENCES, ErrorCode


@pytest.mark.parametrize(
    ("code", "status", "advice"),
    [
        (ErrorCode.FORBIDDEN, 403, "modelyard keys create"),
        (ErrorCode.UNAUTHENTICATED, 401, "MODELYARD_API_KEY"),
        (ErrorCode.GRANT_TOO_LARGE, 403, None),
        (ErrorCode.MISDIRECTED, 421, None),
        (ErrorCode.CROSS_SITE, 403, None),
    ],
)
def test_a_key_is_advised_only_where_a_key_helps(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: ErrorCode,
    status: int,
    advice: str | None,
) -> None:
    def refused(*_arguments: object, **_options: object) -> None:
        raise ApiError(code, status, "No.")

    monkeypatch.setattr(cli, "commands", refused)
    with pytest.raises(SystemExit) as exited:
        cli.app([])
    assert exited.value.code == FAILED
    told = capsys.readouterr().err
    assert f"No. ({code})" in told
    if advice is None:
        assert "key" not in told
    else:
        assert advice in told


@pytest.mark.parametrize(
    ("error", "advised"),
    [
        (ApiError(ErrorCode.INTERNAL, 404, "Not as a gateway."), True),
        (ApiError(ErrorCode.INTERNAL, 500, "A defect.", request_id="r-1"), False),
        (ApiError(ErrorCode.NOT_FOUND, 404, SENTENCES[ErrorCode.NOT_FOUND]), True),
        (ApiError(ErrorCode.NOT_FOUND, 404, "There is no job j-1.", request_id="r-1"), False),
    ],
)
def test_the_url_is_doubted_where_no_gateway_seems_to_be(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: ApiError,
    *,
    advised: bool,
) -> None:
    def refused(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(cli, "commands", refused)
    with pytest.raises(SystemExit):
        cli.app([])
    assert ("--url" in capsys.readouterr().err) is advised


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_output_that_cant_be_written_is_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    def printing(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cli, "commands", printing)
    with pytest.raises(SystemExit) as exited:
        cli.app(options)
    assert exited.value.code == FAILED
    assert "The output can't be written: No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("load", "j-1"), "--timeout"),
        (("load", "j-1"), "--queue-timeout"),
        (("wait", "j-1"), "--timeout"),
        (("drain", "gpu-7"), "--deadline"),
    ],
)
def test_seconds_that_are_no_number_are_wrong_usage(
    capsys: pytest.CaptureFixture[str], command: tuple[str, ...], option: str, given: str
) -> None:
    with pytest.raises(SystemExit) as exited:
        cli.app([*command, f"{option}={given}"])
    assert exited.value.code == USAGE
    assert option in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("hosts", "--url"), "Option '--url' requires an argument"),
        (("infer", "j-1"), "give --input or --upload"),
        (("infer",), "give a job or --model"),
        (("infer", "j-1", "--model", "m", "--upload", __file__), "give a job or --model"),
        (("infer", "j-1", "--dataset", "d", "--upload", __file__), "a job has its dataset"),
        (("infer", "j-1", "--input", "null"), "null is no input"),
        (("infer", "j-1", "--input", "@"), "@ stands before the name of a file"),
        (("delete", "model", "m"), "`modelyard models delete m`"),
        (("delete", "dataset", "d"), "`modelyard datasets delete d`"),
        (("delete", "dead-letter", "i"), "`modelyard dead-letters delete i`"),
        (("delete", "key", "k"), "`modelyard keys revoke k`"),
        (("delete", "model"), "`modelyard models delete NAME`"),
        (("delete", "model", "--force"), "`modelyard models delete NAME`"),
        (("delete", "opration", "o"), "operation"),
    ],
)
def test_wrong_usage_is_told_by_its_cause(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], told: str
) -> None:
    with pytest.raises(SystemExit) as exited:
        cli.app(list(arguments))
    assert exited.value.code == USAGE
    assert told in capsys.readouterr().err


def test_the_help_of_what_is_deleted_elsewhere_names_the_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        cli.app(["delete", "model", "--help"])
    assert "`modelyard models delete NAME`" in capsys.readouterr().err


@pytest.mark.parametrize(("status", "exit_code"), [(422, USAGE), (400, USAGE), (408, FAILED)])
def test_a_request_that_came_too_slowly_is_no_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, status: int, exit_code: int
) -> None:
    def refused(*_arguments: object, **_options: object) -> None:
        raise ApiError(ErrorCode.INVALID_REQUEST, status, "No.")

    monkeypatch.setattr(cli, "commands", refused)
    with pytest.raises(SystemExit) as exited:
        cli.app([])
    assert exited.value.code == exit_code


def test_a_large_input_is_advised_to_be_uploaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_arguments: object, **_options: object) -> None:
        raise ApiError(ErrorCode.BODY_TOO_LARGE, 413, "Too large.")

    monkeypatch.setattr(cli, "commands", refused)
    with pytest.raises(SystemExit):
        cli.app([])
    assert "--upload" in capsys.readouterr().err


def test_a_note_that_is_given_twice_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        cli.app(["load", "j-1", "--metadata", "a=1", "--metadata", "a=2"])
    assert exited.value.code == USAGE
    assert "'a' is given twice" in capsys.readouterr().err
