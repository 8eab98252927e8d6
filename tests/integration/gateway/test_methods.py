"""The methods that every address has beside its own: HEAD, OPTIONS, and the refusal of others."""

import json

import pytest

from tests.support.gateway import ServedGateway, problem
from tests.support.wire import wire

pytestmark = pytest.mark.asyncio(loop_scope="module")

READABLE = [
    "/livez",
    "/readyz",
    "/openapi.json",
    "/v1/operations",
    "/v1/jobs",
    "/v1/hosts",
    "/v1/hosts/h-1",
    "/v1/models",
    "/v1/models/m-131",
    "/v1/datasets",
    "/v1/datasets/ds-550",
    "/v1/dead-letters",
    "/v1/keys",
]


@pytest.mark.parametrize("path", [*READABLE, "/v1/hosts/none", "/v1/operations?limit=x"])
async def test_head_is_answered_as_get_is_without_the_content(
    shared: ServedGateway, path: str
) -> None:
    got, head = await shared.client.get(path), await shared.client.head(path)
    assert head.status_code == got.status_code
    assert head.content == b""
    own = {"date", "x-request-id"}
    told = [{k: v for k, v in one.headers.items() if k not in own} for one in (head, got)]
    assert told[0] == told[1]
    assert int(head.headers["Content-Length"]) > 0


async def test_head_of_a_large_result_tells_its_size_and_the_connection_goes_on(
    shared: ServedGateway,
) -> None:
    operation_id = await shared.accepted()
    result = json.dumps("x" * (2 << 20))
    await shared.finish(operation_id, result_json=result)
    async with wire(shared.url) as kept:
        path = f"/v1/operations/{operation_id}/result"
        await kept.send(f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = await kept.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert f"content-length: {len(result)}".encode() in head.lower()
        await kept.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await kept.answer())[0] == 200


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/jobs", "GET, HEAD, OPTIONS, POST"),
        ("/v1/models/m-131", "DELETE, GET, HEAD, OPTIONS, PUT"),
        ("/v1/models/not-there", "DELETE, GET, HEAD, OPTIONS, PUT"),
        ("/v1/models/m-131/infer", "OPTIONS, POST"),
        ("/inference_router", "OPTIONS, POST"),
        ("/inference_router/", "OPTIONS, POST"),
        ("/openapi.json", "GET, HEAD, OPTIONS"),
    ],
)
async def test_options_names_the_methods_and_opens_nothing_to_other_sites(
    shared: ServedGateway, guarded: ServedGateway, path: str, allowed: str
) -> None:
    for gateway in (shared, guarded):
        answer = await gateway.client.options(path, headers={"Origin": "https://elsewhere.example"})
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer.headers["Allow"] == allowed
        assert not [name for name in answer.headers if name.startswith("access-control-")]


async def test_options_of_the_server_names_all_methods(shared: ServedGateway) -> None:
    async with wire(shared.url) as one:
        await one.send(b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        head = await one.rest()
    assert head.startswith(b"HTTP/1.1 204 ")
    assert b"allow: DELETE, GET, HEAD, OPTIONS, POST, PUT\r\n" in head


async def test_options_of_nothing_is_404(shared: ServedGateway) -> None:
    answer = await shared.client.options("/v1/nothing")
    assert answer.status_code == 404
    assert problem(answer)["code"] == "not_found"


@pytest.mark.parametrize("method", ["PATCH", "TRACE", "PROPFIND"])
async def test_any_other_method_is_405_and_told_what_is_allowed(
    shared: ServedGateway, method: str
) -> None:
    answer = await shared.client.request(method, "/v1/models/m-131")
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "DELETE, GET, HEAD, OPTIONS, PUT"
    assert problem(answer)["code"] == "method_not_allowed"
