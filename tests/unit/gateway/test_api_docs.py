"""`/docs`: a page that needs nothing but the gateway."""

import re
from collections.abc import AsyncIterator
from importlib.metadata import version

import httpx2
import pytest

from gateway.app import create_app
from gateway.service import Gateway
from modelyard.broker import Broker
from modelyard.store import Store
from tests.support.gateway import problem


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    store = Store("mongodb://127.0.0.1:1/x", name="test", timeout_s=0.1)
    gateway = Gateway(store, Broker("amqp://127.0.0.1:1", name="test"), with_keys=True)
    transport = httpx2.ASGITransport(app=create_app(gateway))
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client
    await gateway.close()


async def test_the_page_loads_all_that_it_needs_from_the_gateway(
    client: httpx2.AsyncClient,
) -> None:
    page = await client.get("/docs")
    assert page.headers["Content-Type"].startswith("text/html")
    named = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    assert len(named) == 4
    types = {}
    for path in named:
        asset = await client.get(path)
        assert asset.status_code == 200, path
        assert asset.headers["X-Content-Type-Options"] == "nosniff"
        types[path.rpartition(".")[2]] = asset.headers["Content-Type"].partition(";")[0]
    assert types == {"png": "image/png", "css": "text/css", "js": "text/javascript"}
    script = (await client.get("/docs/start.js")).text
    (document,) = re.findall(r'url: "([^"]*)"', script)
    assert (await client.get(document)).json()["openapi"].startswith("3.")
    bundle = (await client.get("/docs/swagger-ui-bundle.js")).text
    assert "SwaggerUIBundle" in bundle
    assert version("flask-swagger-ui") in bundle


async def test_the_page_may_load_and_ask_nothing_of_anybody_else(
    client: httpx2.AsyncClient,
) -> None:
    page = await client.get("/docs")
    policy = dict(
        one.strip().split(" ", 1) for one in page.headers["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert {policy["script-src"], policy["style-src"], policy["connect-src"]} == {"'self'"}
    assert policy["frame-ancestors"] == policy["form-action"] == policy["base-uri"] == "'none'"
    # No script and no style is in the page itself: the policy would not let it run.
    assert re.findall(r"<script[^>]*>([^<]*)</script>", page.text) == ["", ""]
    assert "style=" not in page.text
    assert "<style" not in page.text


@pytest.mark.parametrize("name", ["none.js", "swagger-ui.js", "LICENSE", "..%2f__init__.py"])
async def test_nothing_else_of_the_package_is_served(client: httpx2.AsyncClient, name: str) -> None:
    answer = await client.get(f"/docs/{name}")
    assert answer.status_code == 404
    assert problem(answer)["code"] == "not_found"
