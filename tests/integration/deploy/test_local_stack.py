"""The stack as a whole, on real servers, with stand-ins for the three services.

The stand-ins let a service be late, broken or deaf; the real ones are tested end to end.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest

from deploy.local import background, engine_api, replica_set, stack
from deploy.local.errors import InUse, StackError, StartFailed
from deploy.local.layout import Given, Layout
from deploy.local.mongodb import MongoDB
from deploy.local.ports import LOOPBACK, accepts, free_port
from deploy.local.progress import Progress
from deploy.local.rabbitmq import RabbitMQ
from deploy.local.stack import LocalStack
from deploy.local.state import State
from deploy.local.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

GATEWAY = """
    import json, os
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            hosts = [{"host_id": id, "liveness": "ONLINE"} for id in ("local", "demo")]
            self.wfile.write(json.dumps({"hosts": hosts}).encode())

    address = os.environ["MODELYARD_GATEWAY_HOST"], int(os.environ["MODELYARD_GATEWAY_PORT"])
    HTTPServer(address, Handler).serve_forever()
"""
SLEEPING = "import time; time.sleep(600)"
BROKEN = "raise SystemExit('no such setting')"


@pytest.fixture(scope="module")
def given() -> Iterator[Given]:
    """Start a broker and a database for all; then a stack starts only its engine."""
    with tempfile.TemporaryDirectory(prefix="modelyard-") as folder, ExitStack() as stops:
        Path(folder).chmod(0o755)
        broker, database = RabbitMQ(Path(folder) / "broker"), MongoDB(Path(folder) / "database")
        for server in (broker, database):
            stops.callback(server.stop)
            server.start()
        yield Given(amqp_url=broker.url, mongo_url=database.url)


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a checkout with stand-ins for the services, and nothing to build."""
    path = Path(tempfile.mkdtemp(prefix="modelyard-"))
    path.chmod(0o755)
    write_service(path, "gateway", GATEWAY)
    write_service(path, "dispatcher", SLEEPING)
    write_service(path, "worker", SLEEPING)
    monkeypatch.setattr(stack, "provide_images", lambda *_: None)
    # A default engine of this machine would be used as it is.
    monkeypatch.setattr(engine_api, "DEFAULT", f"unix://{path}/no.sock")
    yield path
    background.down(path, Progress())
    assert processes_under(path) == []
    shutil.rmtree(path)


def write_service(root: Path, module: str, code: str) -> None:
    (root / module).mkdir(exist_ok=True)
    (root / module / "__init__.py").touch()
    (root / module / "__main__.py").write_text(textwrap.dedent(code))


def processes_under(folder: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # gone, or not ours
    return found


def test_up_is_up_when_it_returns_again_does_nothing_and_down_ends_all(
    root: Path, given: Given, capsys: pytest.CaptureFixture[str]
) -> None:
    some = Given(mongo_url=given.mongo_url)
    first = background.up(root, some, Progress())
    assert httpx2.get(f"{first.endpoints.url}/readyz").is_success
    assert first.endpoints.mongo_url == given.mongo_url
    assert {process.name for process in first.processes} == {
        *("rabbitmq", "dockerd", "gateway", "dispatcher", "worker")
    }
    assert background.up(root, some, Progress()) == first
    assert "already up" in capsys.readouterr().out

    sourced = f". {root}/var/stack.env && printenv MODELYARD_URL MODELYARD_AMQP_URL DOCKER_HOST"
    shown = subprocess.run(["sh", "-c", sourced], capture_output=True, text=True, check=True)
    endpoints = first.endpoints
    assert shown.stdout.split() == [endpoints.url, endpoints.amqp_url, endpoints.docker_host]

    background.down(root, Progress())
    assert processes_under(root) == []
    assert State.load(root) is None
    assert replica_set.answers(str(given.mongo_url)), "what was given is not stopped"


def test_up_after_a_crash_cleans_up_and_starts_anew(root: Path, given: Given) -> None:
    first = background.up(root, given, Progress())
    worker = next(process for process in first.processes if process.name == "worker")
    os.kill(worker.identity.pid, signal.SIGKILL)
    wait_until(lambda: not first.alive, 10, "worker gone")
    second = background.up(root, given, Progress())
    assert second.alive
    assert not {p.identity for p in first.processes} & {p.identity for p in second.processes}


def test_a_service_that_exits_shows_its_log_and_nothing_is_left(root: Path, given: Given) -> None:
    write_service(root, "dispatcher", BROKEN)
    # As in truth: without a dispatcher no host comes online, however quick the gateway is.
    write_service(root, "gateway", GATEWAY.replace('("local", "demo")', "()"))
    with pytest.raises(StartFailed, match=re.compile("dispatcher exited.*no such", re.DOTALL)):
        background.up(root, given, Progress())
    assert processes_under(root) == []
    assert State.load(root) is None


def test_the_gateway_of_another_stack_is_not_taken_for_ours(
    root: Path, given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers at our port before our own gateway has found out that it can't listen there."""
    late = "import time; time.sleep(2)\n" + textwrap.dedent(GATEWAY)
    write_service(root, "gateway", late)
    write_service(root, "other", GATEWAY)
    port = free_port()
    address = {"MODELYARD_GATEWAY_HOST": LOOPBACK, "MODELYARD_GATEWAY_PORT": str(port)}
    with subprocess.Popen(
        [sys.executable, "-m", "other"], cwd=root, env={**os.environ, **address}
    ) as other:
        try:
            wait_until(lambda: accepts(port), 10, "the gateway of another stack")
            monkeypatch.setattr(background, "GATEWAY_PORT", port)
            monkeypatch.setattr(background, "is_free", lambda _: True)
            with pytest.raises(StartFailed, match=re.compile("gateway exited.*in use", re.DOTALL)):
                background.up(root, given, Progress())
        finally:
            other.kill()


def test_a_given_server_that_does_not_answer_is_named(root: Path) -> None:
    silent = Given(mongo_url="mongodb://127.0.0.1:1/modelyard?serverSelectionTimeoutMS=100")
    with pytest.raises(
        StackError, match="MongoDB does not answer; its address comes from MODELYARD_MONGO_URL"
    ):
        background.up(root, silent, Progress())


def test_a_private_stack_uses_the_engine_of_the_background_and_leaves_it_running(
    root: Path, given: Given
) -> None:
    up = background.up(root, given, Progress())
    layout = Layout.private(root)
    with LocalStack(layout, host_id="demo") as private:
        assert private.endpoints.docker_host == up.endpoints.docker_host
        assert private.endpoints.amqp_url != up.endpoints.amqp_url
        assert private.endpoints.mongo_url != up.endpoints.mongo_url
        assert private.endpoints.url != up.endpoints.url
        with pytest.raises(InUse), LocalStack(layout, given):
            pytest.fail("two private stacks on one folder")
    assert up.alive
    assert not layout.data.exists()


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_private_stack_is_gone_when_its_command_is_interrupted(
    root: Path, given: Given, ending: signal.Signals
) -> None:
    script = f"""
        import pathlib, time
        from deploy.local import stack
        from deploy.local.layout import Given, Layout
        root = pathlib.Path({str(root)!r})
        stack.provide_images = lambda *_: None
        given = Given({given.amqp_url!r}, {given.mongo_url!r})
        with stack.LocalStack(Layout.private(root), given, host_id="demo"):
            (root / "inside").touch()
            time.sleep(600)
    """
    command = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])

    def inside() -> bool:
        assert command.poll() is None, "the command failed"
        return (root / "inside").exists()

    wait_until(inside, 90, "private stack up")
    assert processes_under(root) != []
    command.send_signal(ending)
    assert command.wait(60) != 0
    assert processes_under(root) == []
