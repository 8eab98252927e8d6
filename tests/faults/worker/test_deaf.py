"""A worker that could speak and can't hear: it must not pass for one that works."""

import asyncio
from urllib.parse import urlsplit

import pytest

from modelyard.contract.topology import control_queue, host_queue
from tests.faults.harness.casualties import HOST, works_again
from tests.faults.harness.proxied_fleet import ProxiedFleet
from tests.faults.table import DEAF

SILENT_WITHIN_S = 40.0
BACK_WITHIN_S = 30.0
NOT_ATTACHED = "the consumer is not attached"
pytestmark = [pytest.mark.faults, pytest.mark.fault(DEAF)]


@pytest.mark.parametrize("ear", ["commands", "control"])
async def test_a_worker_whose_consumer_cannot_come_back_stops_its_heartbeat(
    proxied: ProxiedFleet, ear: str
) -> None:
    fleet = proxied.fleet
    job_id = fleet.job_id()
    await fleet.put_probe("on-h1", host_labels={"name": HOST})
    await fleet.loaded(job_id, model="on-h1")
    before = await fleet.host(HOST)
    queue = (host_queue if ear == "commands" else control_queue)(HOST).name
    await proxied.worker_amqp.refuse()
    vhost = urlsplit(fleet.processes.amqp_url).path.removeprefix("/")
    await asyncio.to_thread(fleet.servers.rabbitmq.ctl, "delete_queue", "--vhost", vhost, queue)
    await fleet.liveness(HOST, "SUSPECT", within_s=SILENT_WITHIN_S)
    assert proxied.worker_amqp.connections, "it could have spoken"
    assert NOT_ATTACHED in fleet.service(f"worker-{HOST}").daemon.log.read_text()
    elsewhere = await fleet.done("TEMP", fleet.job_id(), model="load-http", input={})
    assert elsewhere["host_id"] == "h2"
    await proxied.worker_amqp.heal()
    fleet.invariants.disturbed()
    await fleet.liveness(HOST, "ONLINE", within_s=BACK_WITHIN_S)
    after = await fleet.host(HOST)
    assert after["incarnation"] == before["incarnation"]
    assert (await fleet.job(job_id))["state"] == "LOADED"
    await fleet.done("INFER", job_id, input={})
    await works_again(fleet)
    await fleet.holds()
