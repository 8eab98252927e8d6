"""The reference images on a real engine, as hardened as a worker runs them."""

import csv
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import httpx2
import pytest

from deploy.images.probe import probe as probe_source
from deploy.local.images import DIGITS, PROBE, ensure_images, export_dataset

HARDENED = (
    "--user=65534:65534", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL",
    "--security-opt=no-new-privileges", "--cpus=1", "--memory=512m", "--memory-swap=512m",
    "--pids-limit=256",
)  # fmt: skip
MODEL = "/v2/models/digits"
REPOSITORY = "/v2/repository/models/digits"
PROBE_MODEL = "/v2/models/probe"


class Engine(Protocol):
    """What these tests need of the session's Docker engine."""

    @property
    def url(self) -> str: ...


class Containers:
    """Starts containers on the engine and removes all of them at the end."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._started: list[str] = []

    def docker(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        command = ["docker", "-H", self._url, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)

    def start(self, image: str, *command: str, options: tuple[str, ...] = ("--init",)) -> str:
        done = self.docker(
            "run", "--detach", "--publish=127.0.0.1::8080", *HARDENED, *options, image, *command
        )
        assert done.returncode == 0, done.stderr
        container = done.stdout.strip()
        self._started.append(container)
        return container

    def client(self, container: str) -> httpx2.Client:
        address = self.docker("port", container, "8080").stdout.split()[0]
        return httpx2.Client(base_url=f"http://{address}", timeout=30)

    def exit_code(self, container: str) -> int:
        return int(self.docker("wait", container).stdout)

    def stop_seconds(self, container: str) -> float:
        started = time.monotonic()
        self.docker("stop", "--time=20", container)
        return time.monotonic() - started

    def resident_kib(self, container: str) -> int:
        """All processes' resident memory, as the engine's host sees it."""
        lines = self.docker("top", container, "-eo", "pid,rss").stdout.splitlines()[1:]
        return sum(int(line.split()[1]) for line in lines)

    def remove_all(self) -> None:
        if self._started:
            self.docker("rm", "--force", "--volumes", *self._started)


@pytest.fixture
def containers(engine: Engine) -> Iterator[Containers]:
    containers = Containers(engine.url)
    yield containers
    containers.remove_all()


@pytest.fixture(scope="module")
def dataset(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("datasets") / "ds-550"
    export_dataset(engine.url, target)
    return target


def mounted(dataset: Path) -> tuple[str, ...]:
    return ("--init", f"--volume={dataset}:/data:ro")


def until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    """Probe until it holds; the pause only keeps the probe from eating the container's CPU."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        pause.wait(0.02)


def answers(client: httpx2.Client, path: str, status: int = 200) -> bool:
    try:
        return client.get(path).status_code == status
    except httpx2.TransportError:
        return False


def alive(client: httpx2.Client, path: str = "/v2/health/live") -> httpx2.Client:
    until(lambda: answers(client, path), 20, "alive")
    return client


def held_out(dataset: Path, count: int) -> tuple[list[float], list[int]]:
    with (dataset / "held_out.csv").open(newline="") as stream:
        records = list(csv.reader(stream))[1 : count + 1]
    pixels = [float(cell) for record in records for cell in record[:64]]
    return pixels, [int(record[64]) for record in records]


def test_the_digits_server_loads_predicts_and_really_unloads(
    containers: Containers, dataset: Path
) -> None:
    container = containers.start(DIGITS)
    with containers.client(container) as client:
        alive(client)
        pixels, labels = held_out(dataset, 20)
        tensor = {"name": "pixels", "shape": [20, 64], "datatype": "FP64", "data": pixels}
        infer = f"{MODEL}/infer"
        assert client.get(f"{MODEL}/ready").status_code == 400
        refused = client.post(infer, json={"inputs": [tensor]})
        assert (refused.status_code, refused.json()) == (400, {"error": "The model is not loaded."})
        empty = containers.resident_kib(container)

        assert client.post(f"{REPOSITORY}/load").status_code == 200
        assert client.get(f"{MODEL}/ready").status_code == 200
        answer = client.post(infer, json={"inputs": [tensor]}).json()
        predicted = answer["outputs"][0]["data"]
        assert sum(a == b for a, b in zip(predicted, labels, strict=True)) >= 18
        wrong = client.post(infer, json={"inputs": [tensor | {"shape": [1, 64]}]})
        assert wrong.status_code == 400
        full = containers.resident_kib(container)
        assert full > empty + 50_000

        assert client.post(f"{REPOSITORY}/unload").status_code == 200
        assert client.get(f"{MODEL}/ready").status_code == 400
        assert containers.resident_kib(container) < full - 50_000
        assert client.post(infer, json={"inputs": [tensor]}).status_code == 400

        assert client.post(f"{REPOSITORY}/load").status_code == 200
        again = client.post(infer, json={"inputs": [tensor]}).json()
        assert again["outputs"][0]["data"] == predicted


def test_the_digits_server_runs_over_the_mounted_dataset(
    containers: Containers, dataset: Path
) -> None:
    container = containers.start(DIGITS, options=mounted(dataset))
    with containers.client(container) as client:
        alive(client)
        client.post(f"{REPOSITORY}/load")
        body: dict[str, Any] = {"parameters": {"dataset": "/data"}, "inputs": []}
        answer = client.post(f"{MODEL}/infer", json=body).json()
        assert answer["parameters"]["count"] == 550
        assert answer["parameters"]["accuracy"] > 0.9
        assert len(answer["outputs"][0]["data"]) == 550


@pytest.mark.parametrize("init", [("--init",), ()], ids=["init", "as PID 1"])
def test_sigterm_stops_the_digits_server(containers: Containers, init: tuple[str, ...]) -> None:
    container = containers.start(DIGITS, options=init)
    with containers.client(container) as client:
        alive(client)
        assert containers.stop_seconds(container) < 8
    assert containers.exit_code(container) == 0


def test_digits_batch_prints_the_whole_answer_last(containers: Containers, dataset: Path) -> None:
    container = containers.start(
        DIGITS, "python3", "-m", "digits.batch", "--dataset=/data", "--output=/tmp/answer.json",
        options=mounted(dataset),
    )  # fmt: skip
    assert containers.exit_code(container) == 0
    lines = containers.docker("logs", container).stdout.splitlines()
    assert "predicted 550/550" in lines
    answer = json.loads(lines[-1])
    assert answer["parameters"]["accuracy"] > 0.9
    assert len(answer["outputs"][0]["data"]) == 550


def test_digits_batch_without_its_dataset_says_so(containers: Containers) -> None:
    container = containers.start(DIGITS, "python3", "-m", "digits.batch")
    assert containers.exit_code(container) == 2
    assert "no dataset at '/data'" in containers.docker("logs", container).stderr


def test_the_exported_dataset_is_readable_by_all_and_stays_when_nothing_changed(
    engine: Engine, dataset: Path
) -> None:
    assert dataset.stat().st_mode & 0o005 == 0o005
    file = dataset / "held_out.csv"
    assert file.stat().st_mode & 0o004
    before = file.stat().st_ino
    export_dataset(engine.url, dataset)
    assert file.stat().st_ino == before
    file.write_text("someone wrote over it")
    export_dataset(engine.url, dataset)
    assert len(file.read_text().splitlines()) == 551
    assert [entry.name for entry in dataset.parent.iterdir()] == [dataset.name]


def test_ensuring_images_that_are_there_does_nothing(engine: Engine) -> None:
    said: list[str] = []
    ensure_images(engine.url, said.append)
    assert said == []


def test_nothing_of_the_building_machine_stays_in_the_images(containers: Containers) -> None:
    for image in (DIGITS, PROBE):
        env = json.loads(containers.docker("inspect", "-f", "{{json .Config.Env}}", image).stdout)
        names = {entry.partition("=")[0].upper() for entry in env}
        assert not {name for name in names if "PROXY" in name or name.startswith("PIP")}
        container = containers.start(image, "python3", "-c", FIND_CA)
        assert containers.exit_code(container) == 0
        assert containers.docker("logs", container).stdout.split() == []


FIND_CA = "import glob; print(*glob.glob('/opt/**/build-ca.crt', recursive=True))"


@pytest.mark.parametrize(
    ("load", "unload", "infer"),
    [
        ("/load", "/unload", "/infer"),
        (
            "/v2/repository/models/probe/load",
            "/v2/repository/models/probe/unload",
            f"{PROBE_MODEL}/infer",
        ),
    ],
    ids=["http", "open-inference"],
)
def test_the_probe_counts_what_changed(
    containers: Containers, load: str, unload: str, infer: str
) -> None:
    container = containers.start(PROBE)
    with containers.client(container) as client:
        alive(client, "/alive")
        assert client.post(infer, json={}).status_code == 400
        for path in (load, load):
            assert client.post(path).status_code == 200
        assert client.get("/ready").status_code == 200
        assert client.get(f"{PROBE_MODEL}/ready").status_code == 200
        answer = client.post(infer, json={"x": 1, "bytes": 100_000}).json()
        assert answer["echo"] == {"x": 1, "bytes": 100_000}
        assert answer["container"] == container[:12]
        assert len(answer["blob"]) == 100_000
        for path in (unload, unload):
            assert client.post(path).status_code == 200
        stats = client.get("/stats").json()
        assert (stats["load_calls"], stats["loads"]) == (2, 1)
        assert (stats["unload_calls"], stats["unloads"]) == (2, 1)
        assert stats["loaded"] is False
        assert containers.stop_seconds(container) < 8


def test_the_probe_misbehaves_as_its_inputs_ask(containers: Containers) -> None:
    container = containers.start(PROBE, "python3", "/opt/probe/probe.py", "process")
    with containers.client(container) as client:
        alive(client, "/alive")
        assert client.post("/infer", json={"status": 503}).status_code == 503
        elsewhere = client.post("/infer", json={"redirect": "http://127.0.0.1:1/"})
        assert (elsewhere.status_code, elsewhere.headers["location"]) == (
            302,
            "http://127.0.0.1:1/",
        )
        assert client.post("/infer", json={"not_json": True}).text == "this is not JSON"
        with pytest.raises(httpx2.TransportError):
            client.post("/infer", json={"close": True})
        with pytest.raises(httpx2.TransportError):
            client.post("/infer", json={"parameters": {"exit": 7}})
        assert containers.exit_code(container) == 7


def test_the_probe_misbehaves_as_its_environment_asks(containers: Containers) -> None:
    dies = containers.start(PROBE, options=("--init", "--env=PROBE_LOAD_EXIT=9"))
    with containers.client(dies) as client:
        alive(client, "/alive")
        with pytest.raises(httpx2.TransportError):
            client.post("/load")
        assert containers.exit_code(dies) == 9
    never = containers.start(PROBE, options=("--init", "--env=PROBE_READY_SECONDS=inf"))
    with containers.client(never) as client:
        alive(client, "/alive")
        assert client.post("/load").status_code == 200
        assert client.get("/ready").status_code == 503
    at_start = containers.start(PROBE, options=("--init", "--env=PROBE_START_EXIT=3"))
    assert containers.exit_code(at_start) == 3


def test_the_probe_runs_out_of_memory_when_asked(containers: Containers) -> None:
    container = containers.start(PROBE, options=("--init", f"--env=PROBE_HOLD_BYTES={2**30}"))
    with containers.client(container) as client:
        alive(client, "/alive")
        with pytest.raises(httpx2.TransportError):
            client.post("/load")
    containers.exit_code(container)
    state = containers.docker("inspect", "-f", "{{.State.OOMKilled}}", container).stdout
    assert state.strip() == "true"


def test_the_probe_as_batch_ends_with_its_result(containers: Containers, dataset: Path) -> None:
    container = containers.start(
        PROBE, "python3", "/opt/probe/probe.py", "batch",
        options=(*mounted(dataset), "--env=PROBE_BATCH_EXIT=4"),
    )  # fmt: skip
    assert containers.exit_code(container) == 4
    result = json.loads(containers.docker("logs", container).stdout.splitlines()[-1])
    assert result["container"] == container[:12]
    assert result["dataset"] == {"path": "/data", "files": ["held_out.csv"], "writable": False}


def test_every_wish_of_the_probe_is_in_the_readme() -> None:
    source = Path(probe_source.__file__)
    readme = (source.parents[1] / "README.md").read_text()
    for line in source.read_text().splitlines():
        for name in line.split('"')[1::2]:
            if name.startswith("PROBE_"):
                assert f"`{name}" in readme
