"""The listener for scrapes: real sockets, and what strangers send to them."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx2
import pytest
from prometheus_client import CollectorRegistry, Gauge
from structlog.testing import capture_logs

from deploy.local.ports import LOOPBACK, free_port
from modelyard import __version__
from modelyard.metrics import listener as listeners
from modelyard.metrics.exposition import FRESH_S, Exposition
from modelyard.metrics.listener import MAX_HEADER_BYTES, MAX_OPEN, MetricsListener
from modelyard.metrics.process import ProcessMetrics, StoreMetrics
from modelyard.process.addresses import parse_address
from tests.support.metrics import read_text, scrape, total, value

Place = tuple[str, int]


@pytest.fixture
def registry() -> CollectorRegistry:
    """Give the test a registry with one gauge."""
    made = CollectorRegistry()
    Gauge("modelyard_test", "A gauge.", registry=made).set(7)
    return made


@asynccontextmanager
async def listening(registry: CollectorRegistry, address: Place) -> AsyncIterator[Place]:
    """Run a listener until the block ends; yield where it listens."""
    place: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(
        MetricsListener(Exposition(registry), address).run(place.set_result)
    )
    try:
        async with asyncio.timeout(20):
            yield await place
    finally:
        running.cancel()


async def raw(place: Place, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*place)
    writer.write(sent)
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


# --- scrapes ---


async def test_prometheus_gets_openmetrics_and_others_get_plain_text(
    registry: CollectorRegistry,
) -> None:
    async with listening(registry, ("127.0.0.1", 0)) as (host, port):
        url = f"http://{host}:{port}/metrics"
        assert total(await scrape(url), "modelyard_test") == 7
        async with httpx2.AsyncClient(trust_env=False) as http:
            plain = await http.get(url)
        assert plain.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert "modelyard_test 7.0\n" in plain.text


async def test_only_get_of_metrics_is_answered(registry: CollectorRegistry) -> None:
    async with listening(registry, ("127.0.0.1", 0)) as place:
        assert (await raw(place, b"GET /other HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
        assert (await raw(place, b"POST /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 405 ")
        head = await raw(place, b"HEAD /metrics HTTP/1.1\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert head.endswith(b"\r\n\r\n")


async def test_what_is_no_request_gets_no_answer_and_the_next_scrape_is_answered(
    registry: CollectorRegistry,
) -> None:
    async with listening(registry, ("127.0.0.1", 0)) as place:
        assert await raw(place, b"x" * (MAX_HEADER_BYTES * 2)) == b""
        assert (await raw(place, b"GET /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_a_silent_client_is_closed(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "REQUEST_S", 0.05)
    async with listening(registry, ("127.0.0.1", 0)) as place:
        assert await raw(place, b"GET /metrics HTTP/1.1\r\n") == b""


async def test_no_more_than_so_many_scrapes_are_open(registry: CollectorRegistry) -> None:
    async with listening(registry, ("127.0.0.1", 0)) as place:
        idle = [await asyncio.open_connection(*place) for _ in range(MAX_OPEN)]
        assert await raw(place, b"GET /metrics HTTP/1.1\r\n\r\n") == b""
        for _, writer in idle:
            writer.close()


async def test_a_metric_that_raises_ends_its_scrape_alone() -> None:
    class Broken:
        def __init__(self) -> None:
            self.broken = True

        def collect(self) -> Iterator[object]:
            if self.broken:
                raise RuntimeError("broken")
            return iter(())

    registry, broken = CollectorRegistry(auto_describe=False), Broken()
    broken.broken = False
    registry.register(broken)  # type: ignore[arg-type]
    broken.broken = True
    async with listening(registry, ("127.0.0.1", 0)) as place:
        with capture_logs() as logs:
            assert await raw(place, b"GET /metrics HTTP/1.1\r\n\r\n") == b""
        assert [one["event"] for one in logs] == ["metrics.failed"]
        broken.broken = False
        assert (await raw(place, b"GET /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_a_taken_address_is_tried_again_until_it_is_free(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "RETRY_S", 0.01)
    port = free_port()
    other = await asyncio.start_server(lambda *_: None, LOOPBACK, port)
    refused = asyncio.Event()

    class Watched:
        def warning(self, event: str, **_: object) -> None:
            assert event == "metrics.not_listening"
            refused.set()

        def info(self, *_: object, **__: object) -> None: ...

    monkeypatch.setattr(listeners, "log", Watched())

    async def give_way() -> None:
        await refused.wait()
        other.close()
        await other.wait_closed()

    giving_way = asyncio.create_task(give_way())
    async with listening(registry, (LOOPBACK, port)) as place:
        await giving_way
        assert (await raw(place, b"GET /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


def test_a_text_is_rendered_once_a_second(registry: CollectorRegistry) -> None:
    now = 100.0
    rendered = Exposition(registry, clock=lambda: now)
    gauge = Gauge("modelyard_other", "Another one.", registry=registry)
    assert b"modelyard_other 0.0" in rendered.render("")[0]
    gauge.set(1)
    assert b"modelyard_other 0.0" in rendered.render("")[0]
    now += FRESH_S
    assert b"modelyard_other 1.0" in rendered.render("")[0]


# --- addresses ---


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("127.0.0.1:9181", ("127.0.0.1", 9181)),
        ("[::1]:0", ("::1", 0)),
        ("metrics.example:65535", ("metrics.example", 65535)),
        ("off", None),
    ],
)
def test_an_address_is_host_and_port(text: str, place: Place | None) -> None:
    assert parse_address(text) == place


@pytest.mark.parametrize("text", ["", "9181", ":9181", "::1:9181", "h:", "h:70000", "h:x", "h:²"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse_address(text)


# --- what every process measures ---


def test_each_process_tells_its_version_and_its_memory() -> None:
    registry = ProcessMetrics("worker").registry
    scraped = read_text(Exposition(registry).render("application/openmetrics-text")[0].decode())
    assert total(scraped, "modelyard_build_info", service="worker", version=__version__) == 1
    assert total(scraped, "modelyard_process_resident_memory_bytes") > 1 << 20


def test_calls_are_counted_by_their_outcome() -> None:
    process = ProcessMetrics("gateway")
    store = StoreMetrics(process.registry)
    process.publish_ended(0.5, confirmed=True)
    process.publish_ended(0.5, confirmed=False)
    store.call_ended(0.25, answered=False)
    count = "modelyard_broker_publish_seconds_count"
    assert value(process.registry, count, outcome="confirmed") == 1
    assert value(process.registry, count, outcome="failed") == 1
    total_s = "modelyard_database_call_seconds_sum"
    assert value(process.registry, total_s, outcome="failed") == 0.25


async def test_a_blocked_event_loop_shows_as_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    process = ProcessMetrics("gateway")
    measured = asyncio.Event()

    class Watched:
        def observe(self, seconds: float) -> None:
            assert seconds >= 0.05
            measured.set()

    monkeypatch.setattr(process, "_lag", Watched())
    monkeypatch.setattr("modelyard.metrics.process.LAG_EVERY_S", 0.05)
    running = asyncio.create_task(process.run("127.0.0.1:0"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    time.sleep(0.15)  # noqa: ASYNC251 - the block that is to be seen
    async with asyncio.timeout(10):
        await measured.wait()
    running.cancel()
