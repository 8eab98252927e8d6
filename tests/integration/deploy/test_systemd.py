"""The units of systemd: without mistakes, and with the sandbox that the documentation promises."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local import packages
from dispatcher.settings import DispatcherSettings
from gateway.settings import GatewaySettings
from modelyard.process.config.sources import CONFIG_VARIABLE, IN_FILE, secrets_of, variable
from modelyard.process.settings import ConfiguredSettings
from worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[3]
UNITS = ROOT / "deploy" / "systemd"
SETUP = ROOT / "docs" / "setup.md"
SERVICES: list[tuple[str, type[ConfiguredSettings]]] = [
    ("gateway", GatewaySettings),
    ("dispatcher", DispatcherSettings),
    ("worker", WorkerSettings),
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def analyze() -> str:
    """Return `systemd-analyze`, which is installed if it is missing."""
    packages.ensure(packages.UNITS, print)
    return str(packages.find_program("systemd-analyze"))


def run(*command: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", sorted(one.name for one in UNITS.iterdir()))
def test_a_unit_has_no_mistakes(analyze: str, tmp_path: Path, name: str) -> None:
    text = (UNITS / name).read_text()
    # Where this environment has its commands.
    commands = str(Path(sys.executable).parent)
    (tmp_path / name).write_text(text.replace("/opt/modelyard/bin", commands))
    done = run(analyze, "verify", "--man=no", tmp_path / name.replace("@.", "@1."))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("service", "_settings"), SERVICES)
def test_the_exposure_of_a_unit_is_what_the_documentation_says(
    analyze: str, service: str, _settings: object
) -> None:
    [said] = re.findall(rf"`modelyard-{service}` ([0-9]+[.][0-9])", SETUP.read_text())
    unit = UNITS / f"modelyard-{service}.service"
    threshold = f"--threshold={round(float(said) * 10)}"
    done = run(analyze, "security", "--no-pager", "--offline=true", threshold, unit)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("service", "settings"), SERVICES)
def test_a_unit_gives_its_service_the_file_and_each_secret(
    service: str, settings: type[ConfiguredSettings]
) -> None:
    text = (UNITS / f"modelyard-{service}.service").read_text()
    assert f"{CONFIG_VARIABLE}=/etc/modelyard/{service}.toml" in text
    credentials = dict(re.findall(r"LoadCredential=([a-z-]+):(\S+)", text))
    for field in secrets_of(settings):
        name = field.replace("_", "-")
        assert f"{variable(settings, field)}{IN_FILE}=%d/{name}" in text
        assert credentials.pop(name) == f"/etc/modelyard/secrets/{service}-{name}"
    assert credentials == {}


def test_one_of_several_gateways_differs_from_the_only_one_by_its_ports() -> None:
    only = (UNITS / "modelyard-gateway.service").read_text().splitlines()
    one_of_several = (UNITS / "modelyard-gateway@.service").read_text().splitlines()
    added = [line for line in one_of_several if line not in only and not line.startswith("#")]
    own = "MODELYARD_GATEWAY_SHARE_PORT=true MODELYARD_GATEWAY_METRICS_ADDRESS=127.0.0.1:919%i"
    assert added == ["Description=Modelyard gateway %i", f"Environment={own}"]
    missing = [line for line in only if line not in one_of_several and not line.startswith("#")]
    assert missing == ["Description=Modelyard gateway"]
    variables = {variable(GatewaySettings, name) for name in GatewaySettings.model_fields}
    assert set(re.findall("MODELYARD_GATEWAY[A-Z_]*", added[1])) <= variables
