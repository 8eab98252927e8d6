"""The doctor of a worker on a real engine and a real broker."""

import pytest

from deploy.local.docker_engine import DockerEngine
from modelyard.broker import Broker
from modelyard.contract.topology import EXCHANGES, REPORTS_QUEUE, queues_of_host
from modelyard.doctor.diagnosis import Verdict
from worker import doctor
from worker.engine.docker import doctor as engine_doctor
from worker.settings import WorkerSettings


async def test_a_host_that_is_ready_has_no_failure(
    engine: DockerEngine, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_doctor, "LEAST_ROOM", 1 << 20)  # the machine of a test may be full
    broker = Broker(amqp_url, name="test")
    await broker.declare([REPORTS_QUEUE, *queues_of_host("h")], exchanges=EXCHANGES)
    settings = WorkerSettings.model_validate(
        {"host_id": "h", "docker_url": engine.url, "amqp_url": amqp_url}
    )
    found = await doctor.examine(settings)
    assert [one for one in found if one.verdict is Verdict.FAILURE] == []
    seen = " / ".join(one.seen for one in found)
    assert "Docker " in seen
    assert "storage driver" in seen
    assert "limits memory, processors and processes" in seen
    assert "may publish to modelyard.reports" in seen
    assert "modelyard.host.h.v1 is there" in seen
    assert "Docker's images and containers" in seen
    await broker.close()
