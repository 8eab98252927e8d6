"""Deleting jobs, operations and hosts: by HTTP, with both clients and the command line."""

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest

from modelyard.client import ApiError, AsyncModelyard, Modelyard
from modelyard.contract.errors import ErrorCode
from modelyard.contract.ids import operation_id_for_key
from modelyard.contract.states import JobState
from modelyard.store.jobs import Assignment, JobEffect
from tests.support.command_line import run
from tests.support.gateway import Json, ServedGateway, problem, serving_a_fleet

TEMP: Json = {"job_id": "j-1", "operation_type": "TEMP", "model": "m-131", "input": 1}


@pytest.fixture
async def served(mongo_url: str, amqp_url: str) -> AsyncIterator[ServedGateway]:
    async with serving_a_fleet(mongo_url, amqp_url) as served:
        yield served


async def deleted(served: ServedGateway, path: str) -> httpx2.Response:
    return await served.client.delete(f"/v1/{path}")


async def end_job(served: ServedGateway, job_id: str) -> None:
    """Record that a job's container has come and gone."""
    job = await served.store.jobs.get(job_id)
    assert job is not None
    one = Assignment(job_id, job.version, "o", 1, 1, "h-1")
    await served.store.jobs.assign([one], token="t")
    effect = JobEffect(job_id, "o", 1, 1, 1, "h-1", JobState.TERMINATED, None, None)
    assert await served.store.jobs.apply([effect]) == 1


async def test_an_operation_is_deleted_with_its_result_once_it_has_ended(
    served: ServedGateway,
) -> None:
    operation_id = await served.accepted(**TEMP)
    path = f"operations/{operation_id}"
    refused = await deleted(served, path)
    assert refused.status_code == 409
    assert problem(refused)["code"] == "still_in_use"
    assert "QUEUED" in problem(refused)["detail"]
    await served.finish(operation_id, result_json='"answer"')
    gone = await deleted(served, path)
    assert (gone.status_code, gone.content) == (204, b"")
    for method, place in (
        *(("GET", one) for one in ("", "/result", "/explain", "?wait=1")),
        *(("POST", one) for one in ("/cancel", "/retry")),
        ("DELETE", ""),
    ):
        answer = await served.client.request(method, f"/v1/{path}{place}")
        assert answer.status_code == 404, (method, place)
        assert problem(answer)["code"] == "not_found"
    listed = await served.client.get("/v1/operations", params={"job_id": "j-1"})
    assert listed.json()["operations"] == []


async def test_the_key_of_a_deleted_operation_is_refused_and_runs_nothing(
    served: ServedGateway,
) -> None:
    key = {"Idempotency-Key": "night-7"}
    assert (await served.submit(TEMP, **key)).status_code == 202
    await served.finish(operation_id_for_key("night-7"))
    await served.published(1)
    assert (await deleted(served, f"operations/{operation_id_for_key('night-7')}")).is_success
    again = await served.submit(TEMP, **key)
    assert again.status_code == 422
    assert problem(again)["code"] == "idempotency_key_reused"
    assert problem(again)["detail"].endswith("which was deleted.")
    batch = await served.client.post("/v1/jobs/batch", json=[TEMP], headers={**key})
    assert batch.json()["results"][0]["status"] == 202, "the keys of a batch are others"


async def test_a_job_is_deleted_once_it_has_ended_and_its_name_is_free_again(
    served: ServedGateway,
) -> None:
    operation_id = await served.accepted(**TEMP)
    refused = await deleted(served, "jobs/j-1")
    assert (refused.status_code, problem(refused)["code"]) == (409, "still_in_use")
    await served.finish(operation_id)
    await end_job(served, "j-1")
    assert (await deleted(served, "jobs/j-1")).status_code == 204
    assert (await served.client.get("/v1/jobs/j-1")).status_code == 404
    assert (await served.client.get(f"/v1/operations/{operation_id}")).status_code == 200
    assert (await deleted(served, "jobs/j-1")).status_code == 404
    assert (await served.submit(TEMP)).status_code == 202


async def test_only_a_lost_host_is_deleted(served: ServedGateway) -> None:
    refused = await deleted(served, "hosts/h-1")
    assert problem(refused)["detail"] == "The host is ONLINE, not LOST."
    await served.store.hosts.suspect_silent(after_s=-60)
    await served.store.hosts.lose_silent(after_s=-60)
    assert (await deleted(served, "hosts/h-1")).status_code == 204
    assert (await served.client.get("/v1/hosts/h-1")).status_code == 404


async def test_a_result_that_is_no_longer_kept_is_told_so(served: ServedGateway) -> None:
    operation_id = await served.accepted(**TEMP)
    await served.finish(operation_id, result_json='"answer"')
    await served.store.old_records.results(older_than_s=-60, after=None, limit=10)
    answer = await served.client.get(f"/v1/operations/{operation_id}/result")
    assert (answer.status_code, problem(answer)["code"]) == (404, "no_result")
    assert problem(answer)["detail"] == "Its result is no longer kept."
    assert (await served.client.get(f"/v1/operations/{operation_id}")).status_code == 200


async def test_both_clients_and_the_command_line_delete(served: ServedGateway) -> None:
    for job_id in ("a", "b", "c"):
        await served.store.jobs.ensure([job_id])
    ended = [await served.accepted(job_id="a", operation_type="TERMINATE") for _ in range(3)]
    with Modelyard(served.url) as yard:
        with pytest.raises(ApiError) as refused:
            await asyncio.to_thread(yard.delete_operation, ended[0])
        assert refused.value.code == ErrorCode.STILL_IN_USE
        for operation_id in ended:
            await served.finish(operation_id)
        await asyncio.to_thread(yard.delete_operation, ended[0])
        await asyncio.to_thread(yard.delete_job, "a")
    async with AsyncModelyard(served.url) as client:
        await client.delete_operation(ended[1])
        await client.delete_job("b")
        with pytest.raises(ApiError) as refused:
            await client.delete_host("h-1")
        assert refused.value.code == ErrorCode.STILL_IN_USE
    for what in (("operation", ended[2]), ("job", "c")):
        ran = await run(served.url, "delete", *what)
        assert (ran.code, ran.out, ran.err) == (0, "", "")
    host = await run(served.url, "delete", "host", "h-1")
    assert host.code != 0
    assert "The host is ONLINE, not LOST." in host.err
    assert (await served.client.get("/v1/operations")).json()["operations"] == []
    assert (await served.client.get("/v1/jobs")).json()["jobs"] == []
