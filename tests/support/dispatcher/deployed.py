"""Jobs that a scripted host has brought to where a test begins."""

from typing import Any

from modelyard.contract.messages import HostCommand, InventoryItem
from modelyard.contract.states import JobState, OperationState, Verb
from modelyard.store.records import JobRecord
from tests.support.dispatcher.driver import DispatcherDriver
from tests.support.dispatcher.scripted_host import ScriptedHost
from tests.support.waiting import eventually

CONTAINER = "ab" * 32
"""What a scripted host calls every container, unless it is told otherwise."""


def item(job: JobRecord, **more: Any) -> InventoryItem:
    fields = {
        "container_id": CONTAINER,
        "job_id": job.job_id,
        "generation": job.generation,
        "operation_id": "o",
        "running": True,
        "loaded": True,
        **more,
    }
    return InventoryItem(**fields)


async def created(
    driver: DispatcherDriver, host: ScriptedHost, job_id: str = "job-1", **fields: Any
) -> None:
    await driver.submit(Verb.DEPLOY_CREATE, job_id, **fields)
    await host.finish(await host.command())
    await driver.job(job_id, where=lambda job: job.state is JobState.CREATED)


async def loaded(
    driver: DispatcherDriver, host: ScriptedHost, job_id: str = "job-1", **fields: Any
) -> JobRecord:
    await created(driver, host, job_id, **fields)
    await driver.submit(Verb.DEPLOY_LOAD, job_id)
    await host.finish(await host.command())
    return await driver.job(job_id, where=lambda job: job.state is JobState.LOADED)


async def accepted(driver: DispatcherDriver, host: ScriptedHost) -> HostCommand:
    command = await host.command()
    await host.accept(command)
    await driver.operation(command.operation_id, OperationState.RUNNING)
    return command


async def fenced_off(driver: DispatcherDriver, host_id: str, counts: dict[str, int]) -> None:
    """Return once these and no other late writes of a host are counted."""

    async def as_many() -> bool:
        host = await driver.store.hosts.get(host_id)
        return host is not None and host.fenced_off == counts

    await eventually(as_many, what=f"{counts} fenced off of {host_id}")


async def slots_used(driver: DispatcherDriver, host_id: str, count: int) -> None:
    async def as_many() -> bool:
        host = await driver.store.hosts.get(host_id)
        return host is not None and host.slots_used == count

    await eventually(as_many, what=f"{count} slots used on {host_id}")
