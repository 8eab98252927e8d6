"""The HTTP API does what its OpenAPI document says: schemathesis finds no exception."""

import asyncio
import os
import secrets
import sys
import tomllib
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.access import failed_authentications
from modelyard.contract.access.scopes import Scope
from modelyard.contract.messages import EngineFacts, HostOnline
from modelyard.store.records import DeadLetter
from tests.support.gateway import ServedGateway, bearing, fill_catalog, make_key, serving
from tests.support.schemathesis_run.hooks import OWN_KEY

CONFIG = Path(__file__).resolve().parents[2] / "support/schemathesis_run/schemathesis.toml"
FIXED = tomllib.loads(CONFIG.read_text())["generation"]["max-examples"]
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
async def served(
    mongo_url: str, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ServedGateway]:
    """Serve a gateway with keys and something of everything; it answers without waiting."""
    # Dozens of requests have no valid key, and each would be held back for two seconds.
    monkeypatch.setattr(failed_authentications, "MOST_PAUSE_S", 0.0)
    async with serving(mongo_url, amqp_url, with_keys=True, max_waiting=0) as served:
        await fill_catalog(served.store)
        online = HostOnline(slots=2, engine=EngineFacts(version="29", api_version="1.44"))
        await served.store.hosts.come_online("h-1", "i-1", online)
        letter = DeadLetter(dead_letter_id=uuid.uuid4().hex, reason="invalid_json", payload=b"{")
        await served.store.dead_letters.add([letter])
        yield served


def new_examples(config: pytest.Config) -> list[str]:
    """Return the options for other examples than always the same, if some are asked for."""
    wanted: int | None = config.getoption("--api-examples")
    seed: int | None = config.getoption("--api-seed")
    if wanted is None and seed is None:
        return []
    if seed is None:
        seed = secrets.randbelow(1 << 32)
    print(f"The same again: --api-examples {wanted or FIXED} --api-seed {seed}")  # noqa: T201
    return [f"--max-examples={wanted or FIXED}", f"--seed={seed}"]


@pytest.mark.timeout(36_000)
async def test_every_answer_is_as_the_openapi_document_says(
    served: ServedGateway, request: pytest.FixtureRequest
) -> None:
    """Always the same examples; with `--api-examples N` it is N others of each operation."""
    options = new_examples(request.config)
    key = await make_key(served.store, *Scope)
    [(header, value)] = bearing(key).items()
    running = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("schemathesis"),
        f"--config-file={CONFIG}",
        "run",
        f"{served.url}/openapi.json",
        f"--header={header}: {value}",
        *options,
        cwd=ROOT,
        env=os.environ | {OWN_KEY: key.key_id},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(None if options else 900):
            printed, _ = await running.communicate()
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()
    shown = "\n".join(line[:600] for line in printed.decode(errors="replace").splitlines())
    assert running.returncode == 0, shown
    assert "No issues found" in shown, shown
