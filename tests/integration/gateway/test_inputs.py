"""Inputs that are uploaded: bounded, kept for their tenant, named by requests."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

import pytest

from gateway.submission.uploads import MOST_OF_CLIENT
from modelyard.client import Modelyard
from modelyard.contract.access.scopes import Scope
from modelyard.contract.content.transfers import MAX_CONTENT_BYTES
from modelyard.contract.ids import new_operation_id
from modelyard.contract.states import OperationState
from tests.support.gateway import ServedGateway, bearing, make_key, problem
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")
PNG = {"Content-Type": "image/png"}
LARGE = b"\x89PNG" * 700_000


async def uploaded(served: ServedGateway, content: bytes = b"\x89PNG") -> str:
    answer = await served.client.post("/v1/inputs", content=content, headers=PNG)
    assert answer.status_code == 201, answer.text
    input_id: str = answer.json()["input_id"]
    return input_id


async def test_an_input_is_stored_as_it_is_and_can_be_named(shared: ServedGateway) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for at in range(0, len(LARGE), 100_000):
            yield LARGE[at : at + 100_000]

    answer = await shared.client.post("/v1/inputs", content=parts(), headers=PNG)
    assert answer.status_code == 201
    view = answer.json()
    assert view == {
        "input_id": view["input_id"],
        "content_type": "image/png",
        "size": len(LARGE),
        "sha256": hashlib.sha256(LARGE).hexdigest(),
    }
    assert answer.headers["Location"] == f"/v1/inputs/{view['input_id']}"
    assert (await shared.client.get(answer.headers["Location"])).json() == view
    asked = await shared.submit(
        {"job_id": "j", "operation_type": "INFER", "input_id": view["input_id"]}
    )
    assert asked.status_code == 202, asked.text
    record = await shared.store.operation_queries.get(asked.json()["operation_id"])
    assert record is not None
    assert (record.input_id, record.has_input) == (view["input_id"], False)


async def test_what_is_sent_is_bounded_and_has_a_type(shared: ServedGateway) -> None:
    async def unannounced() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield b"x" * (1 << 20)

    post = shared.client.post
    refused = await post("/v1/inputs", content=bytes(MAX_CONTENT_BYTES + 1), headers=PNG)
    assert (refused.status_code, problem(refused)["code"]) == (413, "body_too_large")
    shared.gateway.uploads.max_bytes = 3 << 20
    try:
        refused = await post("/v1/inputs", content=unannounced(), headers=PNG)
    finally:
        shared.gateway.uploads.max_bytes = MAX_CONTENT_BYTES
    assert (refused.status_code, problem(refused)["code"]) == (413, "body_too_large")
    empty = await post("/v1/inputs", content=b"", headers=PNG)
    assert (empty.status_code, problem(empty)["code"]) == (422, "invalid_request")
    for headers in ({}, {"Content-Type": "png"}, {**PNG, "Content-Encoding": "gzip"}):
        untyped = await post("/v1/inputs", content=b"x", headers=headers)
        assert (untyped.status_code, problem(untyped)["code"]) == (415, "unsupported_media_type")


async def test_too_many_uploads_at_once_are_to_come_again(shared: ServedGateway) -> None:
    go_on = asyncio.Event()
    places = shared.gateway.uploads.places

    async def slow() -> AsyncIterator[bytes]:
        yield b"x"
        await go_on.wait()

    async def all_begun() -> bool:
        return places.held == MOST_OF_CLIENT

    post = shared.client.post
    uploads = [
        asyncio.create_task(post("/v1/inputs", content=slow(), headers=PNG))
        for _ in range(MOST_OF_CLIENT)
    ]
    await eventually(all_begun)
    answer = await post("/v1/inputs", content=b"x", headers=PNG)
    assert (answer.status_code, problem(answer)["code"]) == (503, "unavailable")
    assert "Retry-After" in answer.headers
    go_on.set()
    assert [(await one).status_code for one in uploads] == [201] * MOST_OF_CLIENT
    await uploaded(shared)


async def test_a_request_names_one_input_that_is_there(shared: ServedGateway) -> None:
    unknown = new_operation_id()
    infer = {"job_id": "j", "operation_type": "INFER"}
    gone = await shared.submit({**infer, "input_id": unknown})
    assert (gone.status_code, problem(gone)["code"]) == (422, "input_gone")
    assert problem(gone)["errors"][0]["pointer"] == "/input_id"
    both = await shared.submit({**infer, "input": 1, "input_id": unknown})
    assert (both.status_code, "not both" in both.text) == (422, True)
    neither = await shared.submit(infer)
    assert (neither.status_code, "needs an input" in neither.text) == (422, True)
    batch = await shared.client.post(
        "/v1/jobs/batch",
        json=[{**infer, "input_id": unknown}, {**infer, "input_id": await uploaded(shared)}],
    )
    assert [one["status"] for one in batch.json()["results"]] == [422, 202]
    dry = await shared.client.post("/v1/jobs?dry_run=true", json={**infer, "input_id": unknown})
    assert (dry.status_code, problem(dry)["code"]) == (422, "input_gone")
    missing = await shared.client.get(f"/v1/inputs/{unknown}")
    assert missing.status_code == 404


async def test_a_retry_names_the_same_input(shared: ServedGateway) -> None:
    input_id = await uploaded(shared)
    asked = await shared.submit({"job_id": "j", "operation_type": "INFER", "input_id": input_id})
    operation_id = asked.json()["operation_id"]
    await shared.finish(operation_id, OperationState.FAILED)
    again = await shared.client.post(f"/v1/operations/{operation_id}/retry")
    assert again.status_code == 202, again.text

    async def recorded() -> str | None:
        record = await shared.store.operation_queries.get(again.json()["operation_id"])
        return record.input_id if record else None

    assert await eventually(recorded) == input_id


async def test_an_upload_needs_the_right_to_submit(guarded: ServedGateway) -> None:
    refused = await guarded.client.post("/v1/inputs", content=b"x", headers=PNG)
    assert refused.status_code == 401
    reader = bearing(await make_key(guarded.store, Scope.JOBS_READ))
    refused = await guarded.client.post("/v1/inputs", content=b"x", headers={**PNG, **reader})
    assert (refused.status_code, problem(refused)["code"]) == (403, "forbidden")
    user = bearing(await make_key(guarded.store, Scope.JOBS_INFER))
    stored = await guarded.client.post("/v1/inputs", content=b"x", headers={**PNG, **user})
    assert stored.status_code == 201


async def test_the_client_uploads_and_names_what_it_has_uploaded(shared: ServedGateway) -> None:
    with Modelyard(shared.url) as yard:
        stored = await asyncio.to_thread(yard.upload, LARGE, "image/png")
        assert (stored.size, stored.content_type) == (len(LARGE), "image/png")
        asked = await asyncio.to_thread(lambda: yard.infer("j", input_id=stored.input_id))
    record = await shared.store.operation_queries.get(asked.operation_id)
    assert record is not None
    assert record.input_id == stored.input_id
