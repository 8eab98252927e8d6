"""The configuration of nginx that is shipped, before real gateways."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from deploy.local import packages
from deploy.local.ports import accepts, free_port
from gateway.middleware.cross_site import WebRules
from modelyard.client import AsyncModelyard
from modelyard.contract.messages import MAX_BATCH_BYTES
from modelyard.contract.states import OperationState
from tests.support.gateway import ServedGateway, fill_catalog, serving
from tests.support.waiting import eventually

CONFIGURATION = Path(__file__).resolve().parents[3] / "deploy" / "nginx" / "modelyard.conf"
NAME = "modelyard.example"
AROUND = """
daemon off;
user root;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/modelyard.conf;
}}
"""

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Proxy:
    """A running nginx."""

    url: str
    folder: Path

    def client(self) -> httpx2.AsyncClient:
        """Return a client that believes its certificate and asks for it by its name."""
        trusted = ssl.create_default_context(cafile=str(self.folder / "fullchain.pem"))
        return httpx2.AsyncClient(
            base_url=self.url, verify=trusted, headers={"Host": NAME}, timeout=30
        )


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a certificate of its own; installs nginx and openssl if need be."""
    packages.ensure(packages.PROXY, print)
    folder = tmp_path_factory.mktemp("proxy")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-keyout", folder / "key.pem", "-out", folder / "fullchain.pem"),
            *("-subj", f"/CN={NAME}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return folder


@contextmanager
def nginx(folder: Path, *gateways: int) -> Iterator[Proxy]:
    """Run nginx with the shipped configuration: other ports and paths, and nothing else."""
    port = free_port()
    shipped = CONFIGURATION.read_text()
    ours = {
        "    server 127.0.0.1:8080;": "\n".join(f"    server 127.0.0.1:{one};" for one in gateways),
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "/etc/ssl/modelyard": str(folder),
    }
    for theirs, own in ours.items():
        assert theirs in shipped
        shipped = shipped.replace(theirs, own)
    (folder / "modelyard.conf").write_text(shipped)
    (folder / "nginx.conf").write_text(AROUND.format(folder=folder))
    command = [str(packages.find_program("nginx")), "-p", str(folder), "-c", f"{folder}/nginx.conf"]
    checked = subprocess.run(
        [*command, "-t"], capture_output=True, text=True, timeout=30, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert "[warn]" not in checked.stderr
    process = subprocess.Popen(command)
    try:
        yield Proxy(f"https://127.0.0.1:{port}", folder)
    finally:
        process.terminate()
        process.wait(timeout=20)


async def _up(proxy: Proxy) -> bool:
    return accepts(int(proxy.url.rpartition(":")[2]))


@asynccontextmanager
async def proxied(
    certificate: Path, mongo_url: str, amqp_url: str, *, port: int
) -> AsyncIterator[tuple[Proxy, ServedGateway]]:
    rules = WebRules(hosts=frozenset({NAME}))
    with nginx(certificate, port) as proxy:
        async with serving(mongo_url, amqp_url, rules=rules, port=port) as served:
            await fill_catalog(served.store)
            await eventually(lambda: _up(proxy), what="nginx listens")
            yield proxy, served


async def test_a_wait_lasts_through_the_proxy_until_the_operation_ends(
    certificate: Path, mongo_url: str, amqp_url: str
) -> None:
    async with (
        proxied(certificate, mongo_url, amqp_url, port=free_port()) as (proxy, served),
        proxy.client() as client,
    ):
        request = {"job_id": "j-1", "operation_type": "TERMINATE"}
        submitted = await client.post("/v1/jobs", json=request)
        assert submitted.status_code == 202, submitted.text
        operation = submitted.json()["operation_id"]
        waiting = asyncio.create_task(client.get(f"/v1/operations/{operation}?wait=20"))
        await served.has_waiters()
        await served.finish(operation)
        assert (await waiting).json()["state"] == OperationState.SUCCEEDED


async def test_the_gateway_itself_refuses_what_is_too_large_or_for_another_name(
    certificate: Path, mongo_url: str, amqp_url: str
) -> None:
    async with (
        proxied(certificate, mongo_url, amqp_url, port=free_port()) as (proxy, _),
        proxy.client() as client,
    ):
        large = b'{"requests":["' + b"x" * (MAX_BATCH_BYTES + 1) + b'"]}'
        headers = {"Content-Type": "application/json"}
        refused = await client.post("/v1/jobs/batch", content=large, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (413, "body_too_large")
        other = await client.get("/v1/models", headers={"Host": "other.example"})
        assert (other.status_code, other.json()["code"]) == (421, "misdirected")


async def test_a_client_outlives_a_restart_of_the_gateway_behind_the_proxy(
    certificate: Path, mongo_url: str, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "fullchain.pem"))
    port = free_port()
    rules = WebRules(hosts=frozenset({NAME}))
    with nginx(certificate, port) as proxy:
        await eventually(lambda: _up(proxy), what="nginx listens")
        async with proxy.client() as client:
            absent = await client.get("/v1/hosts")
        assert (absent.status_code, absent.json()["code"]) == (503, "unavailable")
        assert absent.headers["Content-Type"] == "application/problem+json"
        assert absent.headers["Retry-After"] == "1"
        async with AsyncModelyard(proxy.url, attempts=20) as client:
            asked = asyncio.create_task(client.terminate("j-1"))
            async with serving(mongo_url, amqp_url, rules=rules, port=port):
                assert (await asked).job_id == "j-1"


async def test_with_two_gateways_one_may_be_away(
    certificate: Path, mongo_url: str, amqp_url: str
) -> None:
    here, away = free_port(), free_port()
    rules = WebRules(hosts=frozenset({NAME}))
    with ExitStack() as stack:
        proxy = stack.enter_context(nginx(certificate, away, here))
        async with (
            serving(mongo_url, amqp_url, rules=rules, port=here),
            proxy.client() as client,
        ):
            await eventually(lambda: _up(proxy), what="nginx listens")
            request = {"job_id": "j-1", "operation_type": "TERMINATE"}
            statuses = [(await client.post("/v1/jobs", json=request)).status_code for _ in range(4)]
        assert statuses == [202] * 4
