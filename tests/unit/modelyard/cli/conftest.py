"""The command line in this process, against a gateway that a test writes."""

from collections.abc import Callable

import httpx2
import pytest

from modelyard.cli import main as cli
from modelyard.cli import session
from modelyard.client import Modelyard
from tests.support.command_line import Ran

Gateway = Callable[[httpx2.Request], httpx2.Response]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run a command; the first argument answers its requests."""

    def ran(gateway: Gateway, *arguments: str) -> Ran:
        def client(url: str, *, api_key: str | None) -> Modelyard:
            return Modelyard(url, api_key=api_key, transport=httpx2.MockTransport(gateway))

        monkeypatch.setattr(session, "Modelyard", client)
        with pytest.raises(SystemExit) as exited:
            cli.app([*arguments, "--url", "http://gateway"])
        out, err = capsys.readouterr()
        return Ran(int(exited.value.code or 0), out, err)

    return ran
