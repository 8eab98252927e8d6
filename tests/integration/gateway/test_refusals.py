"""What the gateway refuses, between a real RabbitMQ and a real MongoDB.

Nothing of it is kept, so that one gateway serves all of it.
"""

import pytest

from modelyard.contract.access.scopes import SCOPES_OF, Role
from tests.support.gateway import Json, ServedGateway, bearing, make_key, problem

pytestmark = pytest.mark.asyncio(loop_scope="module")

CREATE = {
    "job_id": "j-1",
    "model": "m-131",
    "dataset": "ds-550",
    "operation_type": "DEPLOY_CREATE",
    "container_id": "",
}
MODEL = {"image": "a/b:1", "profile": "batch", "resources": {"memory": "512m"}}
NOWHERE = "/v1/operations/01890000-0000-7000-8000-000000000000"


@pytest.mark.parametrize("key", ["", "with space", "x" * 256, "tab\there"])
async def test_a_key_that_is_none_is_refused(shared: ServedGateway, key: str) -> None:
    answer = await shared.submit(CREATE, **{"Idempotency-Key": key})
    assert answer.status_code == 422
    assert problem(answer)["errors"][0]["header"] == "Idempotency-Key"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/operations/7", "operation_id"),
        ("/v1/operations/7/result", "operation_id"),
        ("/v1/jobs/a%20b", "job_id"),
        ("/v1/hosts/a%20b", "host_id"),
        ("/v1/models/a%20b", "name"),
        ("/v1/inputs/7", "input_id"),
    ],
)
async def test_an_id_that_nothing_can_have_is_not_found_and_named(
    shared: ServedGateway, path: str, name: str
) -> None:
    answer = await shared.client.get(path)
    assert answer.status_code == 404
    assert problem(answer)["detail"].startswith(
        f"There is nothing at this address: {name} must be "
    )


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"requests": []}, "batch_too_large"),
        ([], "batch_too_large"),
        ([{}] * 1001, "batch_too_large"),
        ({"requests": {"$ne": ""}}, "invalid_request"),
        ({"requests": [CREATE], "more": 1}, "invalid_request"),
        ("text", "invalid_request"),
        (CREATE, "invalid_request"),
    ],
)
async def test_a_body_that_is_no_batch_is_refused(
    shared: ServedGateway, body: Json, code: str
) -> None:
    answer = await shared.client.post("/v1/jobs/batch", json=body)
    assert answer.status_code == 422
    assert problem(answer)["code"] == code


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=201",
        "limit=x",
        "state=DONE",
        "unknown=1",
        "state=QUEUED&state=FAILED",
        "job_id=a/b",
        "job_id[$ne]=x",
        "cursor=!",
        "cursor=bnVsbA",
        "cursor=WyIwMDAxLTAxLTAxVDAwOjAwOjAwKzIzOjU5IiwgIngiXQ",
        "cursor=1.a/b",
        "cursor=123456789012345.x",
        "cursor=.x",
        "cursor=" + "W1tb" * 200,
        "cursor=" + "W1tb" * 120,
    ],
)
@pytest.mark.parametrize("path", ["/v1/operations", "/v1/jobs"])
async def test_a_query_that_is_wrong_is_refused(
    shared: ServedGateway, path: str, query: str
) -> None:
    answer = await shared.client.get(f"{path}?{query}")
    assert answer.status_code == 422, answer.text
    assert problem(answer)["errors"][0]["parameter"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (MODEL | {"name": "y"}, "/name"),
        (MODEL | {"privileged": True}, "/privileged"),
        (MODEL | {"image": {"$ne": ""}}, "/image"),
        (MODEL | {"user": "0"}, "/user"),
        ({"profile": "batch"}, "/image"),
        (MODEL | {"profile": "http"}, "/port"),
        ([], ""),
    ],
)
async def test_a_wrong_model_is_refused_with_a_pointer(
    shared: ServedGateway, body: Json, pointer: str
) -> None:
    answer = await shared.client.put("/v1/models/x", json=body)
    assert answer.status_code == 422
    assert problem(answer)["errors"][0]["pointer"] == pointer


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/jobs/", 404, "not_found"),
        ("GET", "/redoc", 404, "not_found"),
        ("GET", "/v1/jobs/j-unknown", 404, "not_found"),
        ("GET", NOWHERE, 404, "not_found"),
        ("GET", f"{NOWHERE}/result", 404, "not_found"),
        ("GET", "/v1/operations/abc", 404, "not_found"),
        ("GET", "/v1/jobs/a%0A", 404, "not_found"),
        ("GET", "/v1/jobs/%2e%2e%2fimages%2fprune", 404, "not_found"),
        ("GET", "/v1/hosts/a%00", 404, "not_found"),
        ("DELETE", "/v1/models/..%5Cx", 404, "not_found"),
        ("PUT", "/v1/models/a%20b", 422, "invalid_request"),
        ("GET", f"{NOWHERE}?wait=61", 422, "invalid_request"),
        ("GET", f"{NOWHERE}?wait=nan", 422, "invalid_request"),
        ("GET", f"{NOWHERE}?wai=1", 422, "invalid_request"),
    ],
)
async def test_every_error_is_a_problem(
    shared: ServedGateway, method: str, path: str, status: int, code: str
) -> None:
    answer = await shared.client.request(method, path)
    assert answer.status_code == status
    assert problem(answer)["code"] == code


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("DELETE", "/v1/jobs", "GET, HEAD, OPTIONS, POST"),
        ("POST", "/v1/models/x", "DELETE, GET, HEAD, OPTIONS, PUT"),
        ("GET", "/inference_router/", "OPTIONS, POST"),
        ("PUT", "/livez", "GET, HEAD, OPTIONS"),
    ],
)
async def test_a_method_that_is_not_taken_is_told_the_ones_that_are(
    shared: ServedGateway, method: str, path: str, allow: str
) -> None:
    answer = await shared.client.request(method, path)
    assert answer.status_code == 405
    assert problem(answer)["code"] == "method_not_allowed"
    assert answer.headers["Allow"] == allow


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"{NOWHERE}/cancel", 404),
        ("/v1/operations/%2e%2e/cancel", 404),
        (f"{NOWHERE}/cancel?wait=61", 422),
        (f"{NOWHERE}/cancel?wait=1&wait=2", 422),
        (f"{NOWHERE}/cancel?force=1", 422),
        (f"{NOWHERE}/retry", 404),
        ("/v1/operations/abc/retry", 404),
        ("/v1/hosts/nobody/drain", 404),
        ("/v1/hosts/a%00/drain", 404),
        ("/v1/hosts/h-1/drain?deadline_s=0", 422),
        ("/v1/hosts/h-1/drain?deadline_s=604801", 422),
        ("/v1/hosts/h-1/drain?deadline_s=nan", 422),
        ("/v1/hosts/h-1/drain?deadline_s=inf", 422),
        ("/v1/hosts/h-1/drain?move=perhaps", 422),
        ("/v1/hosts/h-1/drain?move=true&move=false", 422),
        ("/v1/hosts/h-1/drain?move[$ne]=true", 422),
        ("/v1/dead-letters/nobody/replay", 404),
        ("/v1/dead-letters/%24ne/replay", 404),
    ],
)
async def test_what_is_unknown_or_wrong_is_refused(
    shared: ServedGateway, path: str, status: int
) -> None:
    answer = await shared.client.post(path)
    assert answer.status_code == status, answer.text
    assert problem(answer)["code"] == ("not_found" if status == 404 else "invalid_request")
    host = await shared.store.hosts.get("h-1")
    assert host is not None
    assert host.drain is None


@pytest.mark.parametrize(
    "body",
    [
        {"name": "x"},
        {"name": "x", "role": "user", "scopes": ["jobs:read"]},
        {"name": "x", "scopes": []},
        {"name": "x", "role": "root"},
        {"name": "", "role": "user"},
        {"name": "a\nb", "role": "user"},
        {"name": {"$ne": ""}, "role": "user"},
        {"name": "x", "role": "user", "expires_in_s": 0},
        {"name": "x", "role": "user", "tenant": "other"},
        {"name": "x", "role": "user", "key_id": "0"},
    ],
)
async def test_a_key_that_is_not_clear_is_not_made(guarded: ServedGateway, body: Json) -> None:
    admin = bearing(await make_key(guarded.store, *SCOPES_OF[Role.ADMIN]))
    before = len(await guarded.store.api_keys.all())
    answer = await guarded.client.post("/v1/keys", json=body, headers=admin)
    assert answer.status_code == 422
    assert len(await guarded.store.api_keys.all()) == before
