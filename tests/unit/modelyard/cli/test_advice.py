"""What the command line advises after a refusal: only what helps."""

import pytest

from modelyard.cli import main as cli
from modelyard.cli.exit_codes import FAILED
from modelyard.client import ApiError
from modelyard.contract.errors import ErrorCode


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
