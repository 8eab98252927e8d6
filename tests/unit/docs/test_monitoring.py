"""Metrics, their page, the alerts and the dashboard name the same things."""

import json
import re
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import yaml
from prometheus_client import CollectorRegistry

from dispatcher.gauges import LeaderGauges
from dispatcher.maintenance.orphans import Orphans
from dispatcher.metrics import DispatcherMetrics
from dispatcher.scheduling.fleet import Fleet
from dispatcher.scheduling.waiting import WaitingOperations
from gateway.monitoring.metrics import GatewayMetrics
from modelyard.metrics.process import ProcessMetrics, StoreMetrics
from tests.support.scheduling import host as a_host
from worker.metrics import WorkerMetrics, WorkerReadings

if TYPE_CHECKING:
    from modelyard.store import Store

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "monitoring.md"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yaml"
CONFIGURATION = ROOT / "deploy" / "prometheus" / "prometheus.yaml"
DASHBOARD = ROOT / "deploy" / "grafana" / "modelyard.json"

_ROW = re.compile(r"^\| `(modelyard_\w+)` \| (\w+) \|([^|]*)\|", re.MULTILINE)
_NAME = re.compile(r"modelyard_\w+")
_SUFFIX = re.compile(r"_(bucket|count|sum)$")


def registry() -> CollectorRegistry:
    """Return a registry with the metrics of all processes, with a leader and an incarnation."""
    process = ProcessMetrics("gateway")
    made = process.registry
    StoreMetrics(made)
    GatewayMetrics(made)
    fleet = Fleet(cast("Store", None))
    known = a_host().model_copy(update={"last_seen": datetime.now(UTC)})
    fleet._hosts = {"h1": known}
    waiting = WaitingOperations(cast("Store", None))
    gauges = LeaderGauges(fleet, Orphans(grace_s=1), waiting, lambda: datetime.now(UTC))
    DispatcherMetrics(made).lead(1, gauges.collect)
    readings = WorkerReadings(
        attached=True,
        running_attempts=0,
        lease_left_s=1.0,
        reports_waiting=0,
        reports_stuck_s=0.0,
        devices=(),
    )
    WorkerMetrics(made).incarnation(lambda: readings)
    return made


@pytest.fixture(scope="module")
def metrics() -> dict[str, str]:
    """Give the tests the type of each metric by its name as Prometheus stores it."""
    names: dict[str, str] = {}
    for family in registry().collect():
        kind = "gauge" if family.type == "info" else family.type
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        names[family.name + suffix] = kind
    assert len(names) > 50
    return names


def expressions() -> list[str]:
    rules = yaml.safe_load(ALERTS.read_text())["groups"]
    found = [rule["expr"] for group in rules for rule in group["rules"]]
    dashboard = json.loads(DASHBOARD.read_text())
    found += [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())
    ]
    assert len(found) > 60
    return found


def test_every_metric_is_on_the_page_with_its_type_and_nothing_else_is(
    metrics: dict[str, str],
) -> None:
    assert {name: kind for name, kind, _ in _ROW.findall(PAGE.read_text())} == metrics


def test_the_page_has_the_labels_of_each_metric(metrics: dict[str, str]) -> None:
    told = {
        name: set(labels.replace(",", " ").split())
        for name, _, labels in _ROW.findall(PAGE.read_text())
    }
    for family in registry().collect():
        for sample in family.samples:
            name = sample.name if sample.name in metrics else _SUFFIX.sub("", sample.name)
            assert set(sample.labels) - {"le"} <= told[name], name


def test_names_have_one_prefix_and_base_units(metrics: dict[str, str]) -> None:
    for name, kind in metrics.items():
        assert name.startswith("modelyard_")
        assert not re.search(r"_(ms|milliseconds|minutes|kb|mb|mib|percent)(_|$)", name), name
        assert (kind == "counter") == name.endswith("_total"), name


def test_alerts_and_dashboard_use_metrics_that_exist(metrics: dict[str, str]) -> None:
    for expression in expressions():
        for name in _NAME.findall(expression):
            assert name in metrics or _SUFFIX.sub("", name) in metrics, expression


def test_the_dashboard_shows_every_metric_but_those_of_the_process_itself(
    metrics: dict[str, str],
) -> None:
    shown = {
        _SUFFIX.sub("", name) if name not in metrics else name
        for expression in expressions()
        for name in _NAME.findall(expression)
    }
    assert {
        name for name in metrics.keys() - shown if not name.startswith("modelyard_process_")
    } == set()


def test_every_alert_has_a_paragraph_and_every_paragraph_an_alert() -> None:
    rules = [
        rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
    ]
    names = [rule["alert"] for rule in rules]
    section = PAGE.read_text().partition("\n## Alerts\n")[2]
    assert re.findall(r"^### (\w+)$", section, re.MULTILINE) == names
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["runbook"] == f"docs/monitoring.md#{rule['alert'].lower()}"
        paragraph = section.partition(f"### {rule['alert']}\n\n")[2].partition("\n")[0]
        assert len(paragraph) > 80, rule["alert"]


def test_the_example_scrapes_the_default_addresses_and_reads_the_alerts() -> None:
    given: dict[str, Any] = yaml.safe_load(CONFIGURATION.read_text())
    assert given["rule_files"] == [ALERTS.name]
    targets = {
        one["job_name"]: one["static_configs"][0]["targets"] for one in given["scrape_configs"]
    }
    assert targets == {
        "modelyard-gateway": [_default("gateway")],
        "modelyard-dispatcher": [_default("dispatcher")],
        "modelyard-worker": [_default("worker")],
    }


def test_panels_do_not_overlap_and_have_different_ids() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def _default(service: str) -> str:
    module = import_module(f"{service}.settings")
    settings = getattr(module, f"{service.capitalize()}Settings")
    address: str = settings.model_fields[f"{service}_metrics_address"].default
    return address
