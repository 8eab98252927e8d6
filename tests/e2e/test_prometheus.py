"""The alerts and the dashboard that are shipped, in a real Prometheus that scrapes a real fleet."""

import json
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from deploy.local import packages
from deploy.local.ports import LOOPBACK, free_port
from tests.e2e.fleet import Fleet, User
from tests.support.waiting import eventually

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "modelyard.json").read_text())
QUERIES = [
    (panel["title"], target["expr"])
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", ())
]
WITH_DATA = {
    "Leaders": 1.0,
    "Slots": 12.0,
    "Attached workers, incarnations, tainted devices": 2.0,
}
"""Panels by title, and what the first query of each gives for the fleet of these tests."""


class Prometheus:
    """A client of Prometheus's HTTP API."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http

    async def series(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an expression now; fails if Prometheus can't evaluate it."""
        answer = await self._http.get("/api/v1/query", params={"query": expression})
        assert answer.status_code == 200, f"{expression}: {answer.text}"
        series: list[dict[str, Any]] = answer.json()["data"]["result"]
        return series

    async def value(self, expression: str) -> float | None:
        """Return the only value of an expression; null if it has none."""
        found = await self.series(expression)
        return float(found[0]["value"][1]) if len(found) == 1 else None

    async def alert(self, name: str) -> Mapping[str, Any] | None:
        """Return an alert whose condition holds, pending or firing; null if it does not hold."""
        alerts = (await self._http.get("/api/v1/alerts")).json()["data"]["alerts"]
        return next((one for one in alerts if one["labels"]["alertname"] == name), None)

    async def up(self) -> bool:
        """Tell whether it serves."""
        try:
            return (await self._http.get("/-/ready")).status_code == 200
        except httpx2.TransportError:
            return False


@pytest.fixture(scope="module")
def address(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run Prometheus with what is shipped, on the fleet's addresses and every second."""
    packages.ensure(packages.PROMETHEUS, print)
    folder = tmp_path_factory.mktemp("prometheus")
    shipped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())
    shipped["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    for job in shipped["scrape_configs"]:
        service = job["job_name"].removeprefix("modelyard-")
        processes = [name for name in fleet.services if name.partition("-")[0] == service]
        targets = [f"{LOOPBACK}:{fleet.metrics_ports[name]}" for name in processes]
        job["static_configs"] = [{"targets": targets}]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(shipped))
    (folder / "alerts.yaml").write_text((DEPLOY / "prometheus" / "alerts.yaml").read_text())
    where = f"{LOOPBACK}:{free_port()}"
    process = subprocess.Popen(
        [
            str(packages.find_program("prometheus")),
            f"--config.file={folder}/prometheus.yaml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address={where}",
            "--log.level=warn",
        ],
        cwd=folder,
    )
    try:
        yield f"http://{where}"
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture
async def prometheus(address: str) -> AsyncIterator[Prometheus]:
    async with httpx2.AsyncClient(base_url=address, timeout=10) as http:
        made = Prometheus(http)
        await eventually(made.up, what="Prometheus serves")
        yield made


async def test_every_panel_of_the_dashboard_can_be_drawn(
    prometheus: Prometheus, user: User
) -> None:
    await user.done("TEMP", user.job_id(), model="m-131", dataset="ds-550")
    awaited = dict(WITH_DATA)
    for title, expression in QUERIES:
        query = expression.replace("$__rate_interval", "1m")
        await prometheus.series(query)
        if title in awaited:
            expected = awaited.pop(title)

            async def shown(query: str = query, expected: float = expected) -> bool:
                return await prometheus.value(query) == expected

            await eventually(shown, what=f"{title} shows {expected}")
    assert awaited == {}


async def test_no_alert_stands_while_all_is_well(prometheus: Prometheus, fleet: Fleet) -> None:
    async def scraped() -> bool:
        up = await prometheus.value('sum(up{job=~"modelyard-.*"})')
        return up == len(fleet.services)

    await eventually(scraped, what="every process is scraped")
    for alert in ("ModelyardProcessDown", "ModelyardNoLeader", "ModelyardHostSuspect"):

        async def silent(alert: str = alert) -> bool:
            return await prometheus.alert(alert) is None

        await eventually(silent, what=f"{alert} is silent")


async def test_a_killed_worker_and_a_fleet_without_leader_raise_their_alerts(
    prometheus: Prometheus, fleet: Fleet
) -> None:
    fleet.workers["h2"].kill()
    fleet.dispatcher.kill()
    try:
        down = await eventually(lambda: prometheus.alert("ModelyardProcessDown"))
        assert down["labels"]["severity"] == "critical"
        await eventually(lambda: prometheus.alert("ModelyardNoLeader"), within_s=60)
        fleet.launch("dispatcher")
        suspect = await eventually(lambda: prometheus.alert("ModelyardHostSuspect"), within_s=60)
        assert suspect["annotations"]["runbook"] == "docs/monitoring.md#modelyardhostsuspect"
    finally:
        if not fleet.dispatcher.running:
            fleet.launch("dispatcher")
        fleet.launch("worker-h2")
        fleet.wait_online()
