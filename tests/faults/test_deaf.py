"""A worker that could speak and can't hear: it must not pass for one that works."""

import asyncio
from urllib.parse import urlsplit

import pytest

from modelyard.contract.topology import control_queue, host_queue
from tests.faults.casualties import HOST, works_again
from tests.faults.table import DEAF
from tests.faults.wires import Wires

SILENT_WITHIN_S = 40.0
BACK_WITHIN_S = 30.0
NOT_ATTACHED = "the consumer is not attached"
pytestmark = [pytest.mark.faults, pytest.mark.fault(DEAF)]


@pytest.mark.parametrize("ear", ["commands", "control"])
async def test_a_worker_whose_consumer_cannot_come_back_stops_its_heartbeat(
    wires: Wires, ear: str
) -> None:
    yard = wires.yard
    job_id = yard.job_id()
    await yard.put_probe("on-h1", host_labels={"name": HOST})
    await yard.loaded(job_id, model="on-h1")
    before = await yard.host(HOST)
    queue = (host_queue if ear == "commands" else control_queue)(HOST).name
    await wires.worker_amqp.refuse()
    vhost = urlsplit(yard.fleet.amqp_url).path.removeprefix("/")
    await asyncio.to_thread(yard.servers.rabbitmq.ctl, "delete_queue", "--vhost", vhost, queue)
    await yard.liveness(HOST, "SUSPECT", within_s=SILENT_WITHIN_S)
    assert wires.worker_amqp.connections, "it could have spoken"
    assert NOT_ATTACHED in yard.service(f"worker-{HOST}").daemon.log.read_text()
    elsewhere = await yard.done("TEMP", yard.job_id(), model="load-http", input={})
    assert elsewhere["host_id"] == "h2"
    await wires.worker_amqp.heal()
    yard.invariants.disturbed()
    await yard.liveness(HOST, "ONLINE", within_s=BACK_WITHIN_S)
    after = await yard.host(HOST)
    assert after["incarnation"] == before["incarnation"]
    assert (await yard.job(job_id))["state"] == "LOADED"
    await yard.done("INFER", job_id, input={})
    await works_again(yard)
    await yard.holds()
