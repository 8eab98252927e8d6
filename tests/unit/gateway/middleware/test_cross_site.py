"""What a web page in an operator's browser may not do: other hosts, other origins, forms."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from gateway.app import create_app
from gateway.middleware.cross_site import WebRules
from gateway.service import Gateway
from modelyard.broker import Broker
from modelyard.store import Store
from tests.support.gateway import problem

OWN = "http://127.0.0.1:8080"
APP = "https://app.example"
ONE_LOOP = pytest.mark.asyncio(loop_scope="module")
"""For the tests of one gateway."""
CHANGES = [
    ("POST", "/v1/jobs"),
    ("POST", "/inference_router/"),
    ("POST", "/v1/hosts/h/cordon"),
    ("POST", "/v1/hosts/h/drain"),
    ("POST", "/v1/operations/01890000-0000-7000-8000-000000000000/cancel"),
    ("POST", "/v1/dead-letters/d/replay"),
    ("PUT", "/v1/models/m"),
    ("DELETE", "/v1/datasets/d"),
    ("DELETE", "/v1/keys/k"),
]


@asynccontextmanager
async def browser(rules: WebRules | None = None) -> AsyncIterator[httpx2.AsyncClient]:
    store = Store("mongodb://127.0.0.1:1/x", name="test", timeout_s=0.1)
    gateway = Gateway(store, Broker("amqp://127.0.0.1:1", name="test"))
    transport = httpx2.ASGITransport(app=create_app(gateway, rules))
    async with httpx2.AsyncClient(transport=transport, base_url=OWN) as client:
        yield client
    await gateway.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    """Give the tests a browser's view of one gateway: it keeps nothing from one to the next."""
    async with browser() as made:
        yield made


# --- the host ---


@ONE_LOOP
@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "127.0.0.1@evil.example",
        "10.0.0.1",
        "0.0.0.0",
        "2130706433",
        "evil.example, 127.0.0.1",
        "[::1",
        "[fe80::1]",
        "",
        ":8080",
        "127.0.0.1:8080:80",
    ],
)
@pytest.mark.parametrize("path", ["/v1/hosts", "/openapi.json", "/v1/jobs/j"])
async def test_a_host_that_is_not_ours_is_refused(
    client: httpx2.AsyncClient, host: str, path: str
) -> None:
    answer = await client.get(path, headers={"Host": host})
    assert answer.status_code == 421
    assert problem(answer)["code"] == "misdirected"
    assert "MODELYARD_GATEWAY_ALLOWED_HOSTS" in answer.text


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost:1", "LOCALHOST", "localhost.", "[::1]:8080", "127.8.8.8"]
)
async def test_loopback_is_ours(client: httpx2.AsyncClient, host: str) -> None:
    assert (await client.get("/openapi.json", headers={"Host": host})).status_code == 200


@ONE_LOOP
async def test_the_first_of_two_hosts_does_not_cover_the_second(client: httpx2.AsyncClient) -> None:
    both = [("Host", "127.0.0.1"), ("Host", "evil.example")]
    assert (await client.get("/openapi.json", headers=both)).status_code == 421


@ONE_LOOP
async def test_what_a_proxy_says_of_the_host_is_not_believed(client: httpx2.AsyncClient) -> None:
    for name, value in (("X-Forwarded-Host", "127.0.0.1"), ("Forwarded", "host=127.0.0.1")):
        headers = {"Host": "evil.example", name: value}
        assert (await client.get("/v1/hosts", headers=headers)).status_code == 421


async def test_names_that_the_operator_gave_are_ours() -> None:
    async with browser(WebRules(hosts=frozenset({"modelyard.example"}))) as client:
        for host, status in (
            ("modelyard.example", 200),
            ("ModelYard.Example.:443", 200),
            ("x.modelyard.example", 421),
        ):
            answer = await client.get("/openapi.json", headers={"Host": host})
            assert answer.status_code == status, host


def test_the_address_at_which_a_connection_arrived_is_ours() -> None:
    rules = WebRules()
    assert rules.answers_for("10.0.0.5:8080", "10.0.0.5")
    assert rules.answers_for("[FD00:0::5]:8080", "fd00::5")
    assert not rules.answers_for("10.0.0.6", "10.0.0.5")
    assert not rules.answers_for("10.0.0.5", None)


@ONE_LOOP
async def test_load_balancers_may_ask_by_any_name_whether_it_lives(
    client: httpx2.AsyncClient,
) -> None:
    assert (await client.get("/livez", headers={"Host": "10.9.9.9"})).status_code == 200
    assert (await client.get("/readyz", headers={"Host": "10.9.9.9"})).status_code == 503
    assert (await client.get("/livez/", headers={"Host": "10.9.9.9"})).status_code == 421


# --- the origin ---


@ONE_LOOP
@pytest.mark.parametrize(("method", "path"), CHANGES)
@pytest.mark.parametrize(
    "marks",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "Cross-Site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": OWN},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://127.0.0.1:8081"},
        {"Origin": "http://127.0.0.1"},
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"},
    ],
)
async def test_a_page_of_another_site_changes_nothing(
    client: httpx2.AsyncClient, method: str, path: str, marks: dict[str, str]
) -> None:
    answer = await client.request(method, path, headers=marks)
    assert answer.status_code == 403
    assert problem(answer)["code"] == "cross_site"
    assert "Access-Control-Allow-Origin" not in answer.headers


@ONE_LOOP
async def test_two_origins_are_as_bad_as_the_worse_one(client: httpx2.AsyncClient) -> None:
    both = [("Origin", OWN), ("Origin", "https://evil.example")]
    assert (await client.post("/v1/hosts/h/cordon", headers=both)).status_code == 403


@ONE_LOOP
@pytest.mark.parametrize(
    "marks",
    [
        {},
        {"Origin": OWN},
        {"Sec-Fetch-Site": "same-origin", "Origin": OWN},
        {"Sec-Fetch-Site": "none"},
    ],
)
async def test_who_is_no_page_of_another_site_is_let_through(
    client: httpx2.AsyncClient, marks: dict[str, str]
) -> None:
    # MongoDB is away: that is how far it gets.
    assert (await client.post("/v1/hosts/h/cordon", headers=marks)).status_code == 503


@ONE_LOOP
async def test_a_page_of_another_site_does_not_see_what_it_reads(
    client: httpx2.AsyncClient,
) -> None:
    marks = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    for path in ("/openapi.json", "/livez", "/v1/hosts"):
        answer = await client.get(path, headers=marks)
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


@ONE_LOOP
async def test_no_preflight_of_another_site_is_answered_well(client: httpx2.AsyncClient) -> None:
    marks = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = await client.options("/v1/jobs", headers=marks)
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control-")]


async def test_a_page_of_an_allowed_origin_may_do_all_that_its_key_may() -> None:
    async with browser(WebRules(origins=frozenset({APP}))) as client:
        marks = {"Origin": APP, "Sec-Fetch-Site": "cross-site"}
        asked = {"Access-Control-Request-Method": "PUT"}
        preflight = await client.options("/v1/models/m", headers={**marks, **asked})
        assert preflight.status_code == 204
        assert "PUT" in preflight.headers["Access-Control-Allow-Methods"]
        assert "Authorization" in preflight.headers["Access-Control-Allow-Headers"]
        done = await client.post("/v1/hosts/h/cordon", headers=marks)
        assert done.status_code == 503
        read = await client.get("/openapi.json", headers=marks)
        for answer in (preflight, done, read):
            assert answer.headers["Access-Control-Allow-Origin"] == APP
            assert "Access-Control-Allow-Credentials" not in answer.headers
            assert "Origin" in answer.headers["Vary"]
        for other in ("https://app.example.evil.example", "http://app.example", "null"):
            refused = await client.post("/v1/hosts/h/cordon", headers={"Origin": other})
            assert refused.status_code == 403
            assert "Access-Control-Allow-Origin" not in refused.headers


def headers_in(document: dict[str, Any]) -> tuple[set[str], set[str]]:
    """Return the headers of requests, and of answers, that an OpenAPI document names."""
    asked: set[str] = set()
    answered: set[str] = set()
    for operation in (one for path in document["paths"].values() for one in path.values()):
        parameters = operation.get("parameters", ())
        asked |= {one["name"] for one in parameters if one.get("in") == "header"}
        for answer in operation["responses"].values():
            answered |= set(answer.get("headers", ()))
    return asked, answered


async def test_a_page_of_an_allowed_origin_may_send_and_read_every_header_of_the_api() -> None:
    async with browser(WebRules(origins=frozenset({APP}))) as client:
        marks = {"Origin": APP, "Sec-Fetch-Site": "cross-site"}
        read = await client.get("/openapi.json", headers=marks)
        preflight = await client.options(
            "/v1/models/m", headers={**marks, "Access-Control-Request-Method": "PUT"}
        )
    asked, answered = headers_in(read.json())
    allowed = preflight.headers["Access-Control-Allow-Headers"].split(", ")
    exposed = read.headers["Access-Control-Expose-Headers"].split(", ")
    assert {"If-Match", "If-None-Match", "Idempotency-Key"} <= asked <= set(allowed)
    assert {"ETag"} <= answered <= set(exposed)
    assert "Content-Disposition" in exposed, "a result has it"


# --- the body ---


@ONE_LOOP
@pytest.mark.parametrize(("method", "path"), CHANGES)
@pytest.mark.parametrize(
    "types",
    [
        ["text/plain"],
        ["application/x-www-form-urlencoded"],
        ["multipart/form-data; boundary=x"],
        ["text/plain; application/json"],
        ["application/jsonp"],
        [""],
        ["application/json", "text/plain"],
        [],
    ],
)
async def test_what_a_form_can_send_is_refused_everywhere(
    client: httpx2.AsyncClient, method: str, path: str, types: list[str]
) -> None:
    headers = [("Content-Type", one) for one in types]
    answer = await client.request(method, path, headers=headers, content=b"{}")
    assert answer.status_code == 415
    assert problem(answer)["code"] == "unsupported_media_type"
    came = f"it came with {', '.join(types)!r}." if types else "it came without a Content-Type."
    assert problem(answer)["detail"].endswith(came)


@ONE_LOOP
async def test_a_change_needs_no_body_where_there_is_nothing_to_say(
    client: httpx2.AsyncClient,
) -> None:
    for headers in ({}, {"Content-Type": "application/json; charset=utf-8"}):
        answer = await client.post("/v1/hosts/h/uncordon", headers=headers)
        assert answer.status_code == 503
