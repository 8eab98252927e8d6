"""The text of all metrics of a process, in the form that the scraper asks for."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

OPENMETRICS = "application/openmetrics-text"
FRESH_S = 1.0
"""For how long a text is sent again: however many scrape, the process renders once a second."""


class Exposition:
    """Renders a registry, at most once in `FRESH_S` seconds for each form."""

    def __init__(
        self, registry: CollectorRegistry, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._texts: dict[bool, tuple[float, bytes]] = {}

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the text and its content type for a header `Accept`.

        That is OpenMetrics 1.0.0 for who asks for it, as Prometheus does, and Prometheus' own text
        for all others.
        """
        openmetrics = OPENMETRICS in accept.lower()
        content_type = CONTENT_TYPE_LATEST if openmetrics else CONTENT_TYPE_PLAIN_0_0_4
        now = self._clock()
        made_at, text = self._texts.get(openmetrics, (float("-inf"), b""))
        if now - made_at >= FRESH_S:
            text = (generate_openmetrics if openmetrics else generate_latest)(self._registry)
            self._texts[openmetrics] = (now, text)
        return text, content_type
