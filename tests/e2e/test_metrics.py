"""What is broken shows in the metrics: real processes, scraped as Prometheus does."""

import pytest

from deploy.local.rabbitmq import RabbitMQ
from tests.e2e.catalog import PROBE, PROBES
from tests.e2e.fleet import Fleet, User
from tests.support.gateway import frozen
from tests.support.metrics import Scraped, scrape, total
from tests.support.waiting import eventually


async def seen(fleet: Fleet, process: str, name: str, least: float, **labels: str) -> Scraped:
    """Scrape a process until its samples of this name add up to at least so much."""

    async def there() -> Scraped | None:
        scraped = await scrape(fleet.metrics_url(process))
        return scraped if total(scraped, name, **labels) >= least else None

    return await eventually(there, within_s=60, what=f"{name}{labels} of {process}")


async def test_every_process_is_scraped_and_tells_what_it_is(fleet: Fleet) -> None:
    for process in fleet.services:
        scraped = await scrape(fleet.metrics_url(process))
        service = process.partition("-")[0]
        assert total(scraped, "modelyard_build_info", service=service) == 1
        assert all(name.startswith("modelyard_") for name, _ in scraped), process
    leader = await seen(fleet, "dispatcher", "modelyard_hosts", 2, liveness="ONLINE")
    assert total(leader, "modelyard_dispatcher_leading") == 1
    assert total(leader, "modelyard_devices") == 4
    await seen(fleet, "worker-h1", "modelyard_worker_attached", 1)


async def test_a_model_that_fails_shows_where_it_failed(fleet: Fleet, user: User) -> None:
    spec = PROBES["probe-http"] | {"env": {"PROBE_LOAD_EXIT": "7"}}
    await user.put_model("fails-to-load", image=PROBE, **spec)
    job_id = user.job_id()
    await user.done("DEPLOY_CREATE", job_id, model="fails-to-load")
    ended = await user.do("DEPLOY_LOAD", job_id)
    failed = {"verb": "DEPLOY_LOAD", "state": "FAILED", "code": ended["error"]["code"]}
    await seen(fleet, "gateway", "modelyard_requests_accepted_total", 1, verb="DEPLOY_LOAD")
    await seen(fleet, "dispatcher", "modelyard_operations_ended_total", 1, **failed)
    worker = f"worker-{ended['host_id']}"
    await seen(fleet, worker, "modelyard_worker_attempts_ended_total", 1, **failed)


async def test_a_killed_worker_shows_as_a_suspect_host_with_an_old_heartbeat(
    fleet: Fleet,
) -> None:
    fleet.workers["h2"].kill()
    try:
        gone = await seen(fleet, "dispatcher", "modelyard_hosts", 1, liveness="SUSPECT")
        age_s = total(gone, "modelyard_oldest_heartbeat_age_seconds", liveness="SUSPECT")
        assert age_s > 10
        assert total(gone, "modelyard_hosts", liveness="ONLINE") == 1
    finally:
        fleet.launch("worker-h2")
        fleet.wait_online()
    await seen(fleet, "dispatcher", "modelyard_hosts", 2, liveness="ONLINE")


async def test_a_broker_that_is_cut_off_shows_at_the_gateway(
    fleet: Fleet, user: User, rabbitmq: RabbitMQ
) -> None:
    with frozen(rabbitmq):
        await user.submit("TERMINATE", user.job_id())
        down = await scrape(fleet.metrics_url("gateway"))
    assert total(down, "modelyard_dependency_up", dependency="rabbitmq") == 0
    assert total(down, "modelyard_dependency_up", dependency="mongodb") == 1
    assert total(down, "modelyard_broker_publish_seconds_count", outcome="failed") >= 1
    up = "modelyard_dependency_up"
    await seen(fleet, "gateway", up, 1, dependency="rabbitmq")


@pytest.mark.parametrize("path", ["/", "/v1/jobs"])
async def test_the_port_for_scrapes_serves_nothing_else(
    fleet: Fleet, user: User, path: str
) -> None:
    answer = await user.http.get(fleet.metrics_url("gateway").removesuffix("/metrics") + path)
    assert answer.status_code == 404
