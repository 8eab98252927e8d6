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
from deploy.local.caller_settings import CallerSettings
from deploy.local.errors import InUse, StackError, StartFailed
from deploy.local.layout import OWN_ADDRESSES, Given, Layout
from deploy.local.mongodb import MongoDB
from deploy.local.ports import LOOPBACK, accepts, free_port
from deploy.local.progress import Progress
from deploy.local.rabbitmq import RabbitMQ
from deploy.local.samples import provide_samples
from deploy.local.stack import LocalStack
from deploy.local.state import State
from deploy.local.waiting import wait_until
from modelyard.client import Modelyard

if TYPE_CHECKING:
    from collections.abc import Iterator

GATEWAY = """
    import json, os
    from http.server import BaseHTTPRequestHandler, HTTPServer

    HOSTS = [{"host_id": id, "liveness": "ONLINE"} for id in ("local", "demo", "second")]
    catalog = {}
    missing = {"type": "x", "title": "x", "status": 404, "detail": "x", "code": "not_found"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            entry = self.path.startswith(("/v1/models/", "/v1/datasets/"))
            found = catalog.get(self.path) if entry else {"hosts": HOSTS}
            self.answer(200, found) if found is not None else self.answer(404, missing)

        def do_PUT(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            catalog[self.path] = {"name": self.path.split("/")[-1], **json.loads(body)}
            catalog[self.path].pop("resources", None)  # a gateway answers with numbers
            self.answer(200, catalog[self.path])

        def answer(self, status, document):
            body = json.dumps(document).encode()
            self.send_response(status)
            kind = "application/problem+json" if document is missing else "application/json"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

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
    for layout in Layout.all_in_background(path):
        background.down(layout, Progress())
    assert processes_under(path) == []
    shutil.rmtree(path)


def sourced(layout: Layout) -> dict[str, str]:
    """Return what a shell's environment has after it has sourced the stack's `stack.env`."""
    command = ["sh", "-c", f". {layout.home}/stack.env && env -0"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env={})
    return dict(line.split("=", 1) for line in shown.stdout.split("\0") if line)


def environment_of(state: State, service: str) -> dict[str, str]:
    """Return the environment that a process of the stack was started with."""
    pid = next(one.identity.pid for one in state.processes if one.name == service)
    variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(line.split("=", 1) for line in variables if line)


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
    first = background.up(Layout.background(root), some, Progress())
    assert httpx2.get(f"{first.endpoints.url}/readyz").is_success
    assert first.endpoints.mongo_url == given.mongo_url
    assert {process.name for process in first.processes} == {
        *("rabbitmq", "dockerd", "gateway", "dispatcher", "worker")
    }
    assert background.up(Layout.background(root), some, Progress()) == first
    assert "already up" in capsys.readouterr().out

    sourced = f". {root}/var/stack.env && printenv MODELYARD_URL MODELYARD_AMQP_URL DOCKER_HOST"
    shown = subprocess.run(["sh", "-c", sourced], capture_output=True, text=True, check=True)
    endpoints = first.endpoints
    assert shown.stdout.split() == [endpoints.url, endpoints.amqp_url, endpoints.docker_host]

    background.down(Layout.background(root), Progress())
    assert processes_under(root) == []
    assert State.load(Layout.background(root).home) is None
    assert replica_set.answers(str(given.mongo_url)), "what was given is not stopped"


def test_up_in_a_shell_with_the_addresses_of_the_stopped_stack_starts_anew(
    root: Path, given: Given
) -> None:
    layout = Layout.background(root)
    first = background.up(layout, Given(mongo_url=given.mongo_url), Progress())
    shell = sourced(layout)
    assert Given.by(shell) == Given(mongo_url=given.mongo_url), "its own servers are not given"
    background.down(layout, Progress())
    # As from a `stack.env` of a version that did not mark them.
    unmarked = Given.by({**shell, OWN_ADDRESSES: ""})
    assert unmarked.amqp_url == first.endpoints.amqp_url
    second = background.up(layout, unmarked, Progress())
    assert second.endpoints == first.endpoints
    assert {process.name for process in second.processes} >= {"rabbitmq", "dockerd"}


def test_another_stack_runs_beside_the_first_in_the_same_shell(root: Path, given: Given) -> None:
    layout, beside = Layout.background(root), Layout.background(root, "second")
    some = Given(mongo_url=given.mongo_url)
    first = background.up(layout, some, Progress())
    second = background.up(beside, Given.by(sourced(layout)), Progress())
    ours, theirs = first.endpoints.variables(), second.endpoints.variables()
    assert {name for name in ours if ours[name] == theirs[name]} == {"MODELYARD_MONGO_URL"}
    assert (first.host_id, second.host_id) == ("local", "second")
    background.down(layout, Progress())
    assert second.alive
    assert httpx2.get(f"{second.endpoints.url}/readyz").is_success
    again = background.up(beside, some, Progress())
    assert again == second, "it was up"


@pytest.mark.parametrize("name", ["Two", "a-b", "../x", "x" * 17, "1"])
def test_a_name_that_could_make_names_of_others_is_refused(name: str) -> None:
    with pytest.raises(StackError, match="can't be the name of a stack"):
        Layout.background(Path("/nowhere"), name)


def test_on_an_engine_of_others_each_stack_has_names_of_its_own() -> None:
    shared = Given(docker_host="unix:///run/docker.sock")
    stacks = [
        LocalStack(Layout.background(Path("/checkout"), "")),
        LocalStack(Layout.background(Path("/checkout"), ""), shared),
        LocalStack(Layout.background(Path("/checkout"), "second"), shared),
        LocalStack(Layout.background(Path("/other"), ""), shared),
        LocalStack(Layout.private(Path("/checkout")), shared),
    ]
    names = [one.host_id for one in stacks]
    assert names[0] == "local"
    assert len(set(names)) == len(stacks)


def test_settings_of_the_caller_reach_the_services(root: Path, given: Given) -> None:
    port = free_port()
    settings = CallerSettings.by(
        {
            "MODELYARD_WORKER_SLOTS": "7",
            "MODELYARD_LOG_LEVEL": "debug",
            "MODELYARD_HOST_ID": "second",
            "MODELYARD_GATEWAY_PORT": str(port),
            "MODELYARD_MONGO_URL": "mongodb://of.another/x",
            "MODELYARD_API_KEY": "of-a-client",
            "PATH": "of no service",
        }
    )
    state = background.up(Layout.background(root), given, Progress(), settings)
    assert state.endpoints.url == f"http://{LOOPBACK}:{port}"
    worker, gateway = environment_of(state, "worker"), environment_of(state, "gateway")
    assert worker["MODELYARD_WORKER_SLOTS"] == "7"
    assert worker["MODELYARD_HOST_ID"] == state.host_id == "second"
    assert worker["MODELYARD_WORKER_ALLOWED_IMAGES"] == '["*"]', "a default of the stack"
    assert {one["MODELYARD_LOG_LEVEL"] for one in (worker, gateway)} == {"debug"}
    assert gateway["MODELYARD_MONGO_URL"] == given.mongo_url
    assert "MODELYARD_API_KEY" not in gateway


def test_a_default_of_the_stack_does_not_win_over_the_callers_file(tmp_path: Path) -> None:
    (tmp_path / "modelyard.toml").write_text("worker_slots = 9\n")
    settings = CallerSettings.by({"MODELYARD_CONFIG": str(tmp_path / "modelyard.toml")})
    assert settings.get("MODELYARD_WORKER_SLOTS") == "9"
    over = settings.over({"MODELYARD_WORKER_SLOTS": "4", "MODELYARD_WORKER_CPUS": "1000"})
    assert "MODELYARD_WORKER_SLOTS" not in over
    assert over["MODELYARD_WORKER_CPUS"] == "1000"
    with pytest.raises(StackError, match=r"MODELYARD_CONFIG names .*can't be read"):
        CallerSettings.by({"MODELYARD_CONFIG": str(tmp_path / "missing.toml")})


def test_the_samples_are_in_the_catalog_and_what_was_changed_stays(
    root: Path, given: Given
) -> None:
    layout = Layout.background(root)
    (layout.datasets / "ds-550").mkdir(parents=True)
    url = background.up(layout, given, Progress()).endpoints.url
    with Modelyard(url) as yard:
        assert yard.model("m-131").image == "modelyard/digits:local"
        assert yard.dataset("ds-550").path == str(layout.datasets / "ds-550")
        yard.put_model({"name": "m-131", "image": "mine", "profile": "process"})
        yard.put_dataset({"name": "ds-550", "path": "/gone"})
        provide_samples(url, None, layout.datasets)
        assert yard.model("m-131").image == "mine"
        assert yard.dataset("ds-550").path == str(layout.datasets / "ds-550"), "its folder is gone"


def test_up_after_a_crash_cleans_up_and_starts_anew(root: Path, given: Given) -> None:
    first = background.up(Layout.background(root), given, Progress())
    worker = next(process for process in first.processes if process.name == "worker")
    os.kill(worker.identity.pid, signal.SIGKILL)
    wait_until(lambda: not first.alive, 10, "worker gone")
    second = background.up(Layout.background(root), given, Progress())
    assert second.alive
    assert not {p.identity for p in first.processes} & {p.identity for p in second.processes}


def test_a_service_that_exits_shows_its_log_and_nothing_is_left(root: Path, given: Given) -> None:
    write_service(root, "dispatcher", BROKEN)
    # As in truth: without a dispatcher no host comes online, however quick the gateway is.
    write_service(root, "gateway", GATEWAY.replace('("local", "demo", "second")', "()"))
    with pytest.raises(StartFailed, match=re.compile("dispatcher exited.*no such", re.DOTALL)):
        background.up(Layout.background(root), given, Progress())
    assert processes_under(root) == []
    assert State.load(Layout.background(root).home) is None


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
            monkeypatch.setattr(stack, "GATEWAY_PORT", port)
            monkeypatch.setattr(stack, "is_free", lambda _: True)
            with pytest.raises(StartFailed, match=re.compile("gateway exited.*in use", re.DOTALL)):
                background.up(Layout.background(root), given, Progress())
        finally:
            other.kill()


def test_a_given_server_that_does_not_answer_is_named(root: Path) -> None:
    silent = Given(mongo_url="mongodb://127.0.0.1:1/modelyard?serverSelectionTimeoutMS=100")
    with pytest.raises(
        StackError, match="MongoDB does not answer; its address comes from MODELYARD_MONGO_URL"
    ):
        background.up(Layout.background(root), silent, Progress())


def test_a_private_stack_uses_the_engine_of_the_background_and_leaves_it_running(
    root: Path, given: Given
) -> None:
    up = background.up(Layout.background(root), given, Progress())
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
