"""The wheel, as somebody installs it who has no checkout: in empty environments, one an extra."""

import asyncio
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx2
import pytest

from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parents[3]
LOCK = ROOT / "requirements.lock"
INSTALL_S = 240
PACKAGES = ("modelyard/", "gateway/", "dispatcher/", "worker/")
BASE = {"httpx2", "pydantic", "pydantic-settings", "rich", "structlog", "typer", "uuid_utils"}
STORE = {"motor", "pymongo"}
OF_EXTRAS = {
    "": set[str](),
    "gateway": {"aio-pika", "fastapi", "uvicorn", "uvloop", *STORE},
    "dispatcher": {"aio-pika", "uvloop", *STORE},
    "worker": {"aio-pika", "aiodocker", "nvidia-ml-py", "uvloop"},
}
ALL_OF_EXTRAS = set[str]().union(*OF_EXTRAS.values())

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * INSTALL_S)]


@dataclass(frozen=True)
class Installed:
    """An environment that has the wheel with an extra, and nothing else."""

    folder: Path

    @property
    def distributions(self) -> set[str]:
        listed = pip("--python", str(self.python), "list", "--format=json")
        return {one["name"] for one in json.loads(listed)}

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def run(
        self, command: str, *arguments: str, **variables: str
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [self.folder / "bin" / command, *arguments],
            env={"PATH": os.defpath, "COLUMNS": "200", **variables},
            cwd=self.folder,  # where no checkout is
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @asynccontextmanager
    async def running(self, command: str, variables: Mapping[str, str]) -> AsyncIterator[None]:
        with (self.folder / f"{command}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                self.folder / "bin" / command,
                env={"PATH": os.defpath, **variables},
                cwd=self.folder,
                stderr=log,
            )
        try:
            yield
            assert process.returncode is None
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


class Environments:
    """Installs the wheel with each extra once, when it is first asked for."""

    def __init__(self, wheel: Path, folder: Path) -> None:
        self.wheel = wheel
        self._folder = folder
        self._made: dict[str, Installed] = {}

    def __getitem__(self, extra: str) -> Installed:
        if extra not in self._made:
            made = Installed(self._folder / (extra or "base"))
            subprocess.run(
                [sys.executable, "-m", "venv", "--without-pip", made.folder], check=True, timeout=60
            )
            wanted = f"modelyard[{extra}] @ {self.wheel.as_uri()}"
            pip("--python", str(made.python), "install", "--no-compile", "-c", str(LOCK), wanted)
            self._made[extra] = made
        return self._made[extra]


def pip(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Environments:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    [wheel] = folder.glob("modelyard-*.whl")
    return Environments(wheel, folder)


def test_the_wheel_has_the_product_and_what_runs_beside_it_and_no_tests(
    environments: Environments,
) -> None:
    with zipfile.ZipFile(environments.wheel) as opened:
        names = opened.namelist()
    shared = {name.partition("/data/share/modelyard/")[2] for name in names} - {""}
    deploy = ROOT / "deploy"
    assert shared == {
        str(one.relative_to(deploy))
        for folder in ("grafana", "nginx", "prometheus", "systemd")
        for one in (deploy / folder).rglob("*")
        if one.is_file()
    }
    others = [name for name in names if not name.startswith((*PACKAGES, "modelyard-"))]
    assert others == []
    for package in PACKAGES:
        assert f"{package}py.typed" in names


@pytest.mark.parametrize("extra", OF_EXTRAS)
def test_an_extra_brings_what_its_service_needs_and_nothing_of_the_others(
    environments: Environments, extra: str
) -> None:
    found = environments[extra].distributions
    assert found & ALL_OF_EXTRAS == OF_EXTRAS[extra]
    assert BASE - {"uuid_utils"} <= found
    assert found & {"uuid_utils", "uuid-utils"}


@pytest.mark.parametrize("service", ["gateway", "dispatcher", "worker"])
def test_a_service_starts_where_its_extra_is_installed_and_says_which_one_is_missing_elsewhere(
    environments: Environments, service: str
) -> None:
    helped = environments[service].run(f"modelyard-{service}", "--help")
    assert helped.returncode == 0, helped.stderr
    shown = environments[service].run("modelyard", "config", "show", "--service", service)
    assert shown.returncode == 0, shown.stderr
    assert "MODELYARD_AMQP_URL" in shown.stdout

    refused = environments[""].run(f"modelyard-{service}")
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"modelyard-{service}: ")
    assert refused.stderr.endswith(f"is not installed: pip install 'modelyard[{service}]'.\n")
    assert len(refused.stderr.splitlines()) == 1
    examined = environments[""].run("modelyard", "doctor", "--service", service)
    assert examined.returncode == 2
    assert f"pip install 'modelyard[{service}]'" in examined.stderr


def test_the_first_key_is_made_where_the_databases_driver_is(environments: Environments) -> None:
    refused = environments[""].run("modelyard", "keys", "bootstrap")
    assert refused.returncode == 2
    assert "pip install 'modelyard[dispatcher]'" in refused.stderr


async def test_the_base_commands_a_stack_that_runs_from_the_wheel(
    environments: Environments, mongo_url: str, amqp_url: str, tmp_path: Path
) -> None:
    variables = {"MODELYARD_AMQP_URL": amqp_url, "MODELYARD_MONGO_URL": mongo_url}
    gateway = {**variables, "MODELYARD_GATEWAY_PORT": "0", "MODELYARD_LOG_FORMAT": "json"}
    model = {"name": "m", "image": "registry.example/m:1", "profile": "batch"}
    (tmp_path / "model.json").write_text(json.dumps(model))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(
            environments["dispatcher"].running("modelyard-dispatcher", variables)
        )
        served = environments["gateway"]
        await stack.enter_async_context(served.running("modelyard-gateway", gateway))
        url = await eventually(partial(listening, served.folder / "modelyard-gateway.log"))

        def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
            return environments[""].run("modelyard", *arguments, MODELYARD_URL=url)

        put = await asyncio.to_thread(run, "models", "apply", str(tmp_path / "model.json"))
        assert put.returncode == 0, put.stderr
        submitted = await asyncio.to_thread(run, "temp", "job-1", "-m", "m")
        assert submitted.returncode == 0, submitted.stderr
        operation = submitted.stdout.strip()

        async def waits() -> bool:
            async with httpx2.AsyncClient(base_url=url) as client:
                found = (await client.get(f"/v1/operations/{operation}")).json()
            return found.get("state") == "QUEUED" and bool(found.get("waiting_for"))

        await eventually(waits)  # the dispatcher has looked for a host
        cancelled = await asyncio.to_thread(run, "cancel", operation)
        assert cancelled.returncode == 0, cancelled.stderr
        waited = await asyncio.to_thread(run, "wait", operation)
        assert "CANCELLED" in waited.stdout + waited.stderr


async def listening(log: Path) -> str | None:
    """Return the gateway's address once its log has it."""
    for line in (await asyncio.to_thread(log.read_text)).splitlines():
        if (event := json.loads(line)).get("event") == "gateway.listening":
            return f"http://{event['host']}:{event['port']}"
    return None
