"""What tests read of metrics: one value, or all that a process answers to a scrape."""

import httpx2
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from modelyard.metrics.exposition import OPENMETRICS

Scraped = dict[tuple[str, frozenset[tuple[str, str]]], float]


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    """Return one sample of a registry; 0 if there is none."""
    return registry.get_sample_value(name, labels) or 0.0


def read_text(text: str) -> Scraped:
    """Return the samples of an OpenMetrics text by name and labels; raises for a wrong text."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        for sample in family.samples
    }


async def scrape(url: str) -> Scraped:
    """Scrape a process as Prometheus does."""
    async with httpx2.AsyncClient(trust_env=False, timeout=10) as http:
        answer = await http.get(url, headers={"Accept": f"{OPENMETRICS};version=1.0.0"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith(OPENMETRICS)
    return read_text(answer.text)


def total(scraped: Scraped, name: str, **labels: str) -> float:
    """Return the sum of the samples with this name and at least these labels."""
    wanted = set(labels.items())
    return sum(one for (its, has), one in scraped.items() if its == name and wanted <= has)
