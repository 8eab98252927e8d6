"""What a dispatcher measures while it leads, and that a standby says so."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from prometheus_client import CollectorRegistry

from dispatcher.metrics import DispatcherMetrics
from modelyard.broker import Broker
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.states import Admission, OperationState, Verb
from modelyard.store import Store
from tests.support.dispatcher.deployed import accepted, loaded
from tests.support.dispatcher.driver import MODEL, DispatcherDriver, running_dispatcher
from tests.support.dispatcher.scripted_host import scripted_host
from tests.support.metrics import value
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("quick")


@dataclass(frozen=True)
class Measured:
    """A running dispatcher and where it counts."""

    driver: DispatcherDriver
    registry: CollectorRegistry

    async def sees(self, wanted: float, name: str, **labels: str) -> None:
        async def there() -> bool:
            return value(self.registry, name, **labels) == wanted

        await eventually(there, what=f"{name}{labels} is {wanted}")


@pytest.fixture
async def measured(
    store: Store, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Measured]:
    monkeypatch.setattr("dispatcher.scheduling.waiting.EVERY_S", 0.1)
    monkeypatch.setattr("dispatcher.scheduling.waiting.SHARE", 1)
    await store.models.put(MODEL)
    registry = CollectorRegistry()
    async with running_dispatcher(store, broker, metrics=DispatcherMetrics(registry)):
        yield Measured(DispatcherDriver(store, broker), registry)


async def test_what_ended_is_counted_by_verb_state_and_code(measured: Measured) -> None:
    driver = measured.driver
    async with scripted_host(driver.broker, "h1") as host:
        await loaded(driver, host)
        await driver.submit(Verb.INFER, input=1)
        error = ErrorInfo(code=ErrorCode.INFERENCE_FAILED, message="It said no.")
        await host.finish(await host.command(), state=OperationState.FAILED, error=error)
        counter = "modelyard_operations_ended_total"
        none = {"state": "SUCCEEDED", "code": "none"}
        await measured.sees(1, counter, verb="INFER", state="FAILED", code="inference_failed")
        await measured.sees(1, counter, verb="DEPLOY_LOAD", **none)
        await measured.sees(1, "modelyard_attempts_total", verb="DEPLOY_CREATE")
        phase = "modelyard_operation_phase_seconds_count"
        await measured.sees(1, phase, verb="DEPLOY_LOAD", phase="running")
        await measured.sees(1, phase, verb="DEPLOY_LOAD", phase="total")
        assert value(measured.registry, "modelyard_batch_size_count", queue="events") > 0
        assert value(measured.registry, "modelyard_batch_size_count", queue="modelyard.jobs.v1") > 0


async def test_what_waits_is_counted_by_verb_with_its_age(measured: Measured) -> None:
    for n in range(3):
        await measured.driver.submit(Verb.TEMP, f"t-{n}", input=1)
    await measured.sees(3, "modelyard_operations_waiting", verb="TEMP")
    await measured.sees(0, "modelyard_operations_waiting", verb="INFER")

    async def older() -> bool:
        age_s = value(measured.registry, "modelyard_oldest_waiting_age_seconds", verb="TEMP")
        return age_s > 0.5

    await eventually(older, what="an age")


async def test_hosts_are_counted_by_liveness_and_admission_with_their_slots(
    measured: Measured,
) -> None:
    driver = measured.driver
    async with scripted_host(driver.broker, "h1") as host, scripted_host(driver.broker, "h2"):
        await loaded(driver, host)
        await driver.store.hosts.admit("h2", Admission.CORDONED)
        await measured.sees(1, "modelyard_hosts", liveness="ONLINE", admission="CORDONED")
        online = {"liveness": "ONLINE", "admission": "OPEN"}
        await measured.sees(1, "modelyard_hosts", **online)
        await measured.sees(1, "modelyard_host_slots_used", **online)
        assert value(measured.registry, "modelyard_host_slots", **online) > 1
        await measured.sees(1, "modelyard_containers", side="reserved")


async def test_another_attempt_is_counted_by_the_cause_of_the_first(measured: Measured) -> None:
    driver = measured.driver
    async with scripted_host(driver.broker, "h1") as host:
        operation_id = await driver.submit(Verb.DEPLOY_CREATE)
        error = ErrorInfo(code=ErrorCode.ENGINE_UNAVAILABLE, message="It is away.")
        await host.finish(await host.command(), state=OperationState.FAILED, error=error)
        await measured.sees(
            1, "modelyard_attempt_retries_total", verb="DEPLOY_CREATE", cause="engine_unavailable"
        )
        await driver.operation(operation_id, OperationState.QUEUED, OperationState.DISPATCHED)
        failed = {"verb": "DEPLOY_CREATE", "state": "FAILED", "code": "engine_unavailable"}
        assert value(measured.registry, "modelyard_operations_ended_total", **failed) == 0


async def test_a_late_report_is_counted_once_by_its_reason(measured: Measured) -> None:
    driver = measured.driver
    async with scripted_host(driver.broker, "h1") as host, scripted_host(driver.broker, "h2"):
        await driver.store.hosts.admit("h2", Admission.CORDONED)
        await loaded(driver, host)
        await driver.submit(Verb.INFER, input=1)
        command = await accepted(driver, host)
        late = command.model_copy(update={"epoch": command.epoch + 7})
        for _ in range(2):
            await host.finish(late)
        await measured.sees(1, "modelyard_reports_fenced_off_total", reason="other_epoch")


async def test_a_standby_says_so_and_shows_no_fleet(measured: Measured, store: Store) -> None:
    registry = CollectorRegistry()
    broker = measured.driver.broker
    async with running_dispatcher(store, broker, metrics=DispatcherMetrics(registry)):
        await measured.sees(1, "modelyard_dispatcher_leading")
        assert value(measured.registry, "modelyard_dispatcher_term") >= 1
        assert value(registry, "modelyard_dispatcher_leading") == 0
        names = {family.name for family in registry.collect()}
        assert "modelyard_dispatcher_leading" in names
        assert "modelyard_hosts" not in names
        assert "modelyard_dispatcher_term" not in names
