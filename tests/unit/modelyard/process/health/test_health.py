"""The file that a process touches while it works, and the check of a container's health."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from modelyard.process.health import check
from modelyard.process.health.file import HealthFile


def test_a_process_that_works_is_healthy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "health"
    HealthFile(str(file)).beat()
    assert check.main(["--file", str(file)]) == 0
    assert capsys.readouterr().err == ""


def test_each_beat_counts_anew(tmp_path: Path) -> None:
    file = tmp_path / "health"
    health = HealthFile(str(file))
    health.beat()
    os.utime(file, (0, 0))
    health.beat()
    assert check.main(["--file", str(file)]) == 0


def test_one_that_has_not_worked_for_a_while_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "health"
    HealthFile(str(file)).beat()
    long_ago = time.time() - 60
    os.utime(file, (long_ago, long_ago))
    assert check.main(["--file", str(file), "--within", "30"]) == 1
    assert "expected within 30 s" in capsys.readouterr().err
    assert check.main(["--file", str(file), "--within", "90"]) == 0


def test_one_that_never_worked_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["--file", str(tmp_path / "none")]) == 1
    assert "No such file" in capsys.readouterr().err


def test_a_file_that_can_not_be_written_is_told_once(tmp_path: Path) -> None:
    health = HealthFile(str(tmp_path / "nowhere" / "health"))
    with capture_logs() as logs:
        health.beat()
        health.beat()
    assert [line["event"] for line in logs] == ["health.not_written"]


def test_without_a_setting_there_is_no_file() -> None:
    HealthFile(None).beat()


@pytest.fixture
def answering() -> Iterator[tuple[str, list[int]]]:
    """Yield the URL of a server and the status that it answers."""
    status = [200]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status[0])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/readyz", status
    server.shutdown()
    server.server_close()


def test_a_url_is_healthy_while_it_answers_200(
    answering: tuple[str, list[int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    url, status = answering
    assert check.main(["--url", url]) == 0
    status[0] = 503
    assert check.main(["--url", url]) == 1
    assert capsys.readouterr().err == f"{url}: 503\n"


def test_a_url_that_nobody_answers_is_not() -> None:
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        assert check.main(["--url", f"http://127.0.0.1:{taken.getsockname()[1]}/"]) == 1


def test_the_check_imports_nothing_that_takes_long(tmp_path: Path) -> None:
    code = (
        "import sys, modelyard.process.health.check as check\n"
        f"check.main(['--file', {str(tmp_path)!r}])\n"
        "print([name for name in ('pydantic', 'structlog', 'asyncio') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"
