"""`modelyard keys` from the first key on, by the installed program, as an operator uses it."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from modelyard.client import ApiError, AsyncModelyard
from modelyard.contract.access.api_keys import ApiKey
from modelyard.contract.access.scopes import Scope
from tests.support.gateway import ServedGateway, serving


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture
async def served(mongo_url: str, amqp_url: str) -> AsyncIterator[ServedGateway]:
    async with serving(mongo_url, amqp_url, with_keys=True) as served:
        yield served


async def run(served: ServedGateway, *arguments: str, key: str = "", mongo_url: str = "") -> Ran:
    """Run a command with a key, against a gateway or a database."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MODELYARD_")}
    variables = {"MODELYARD_URL": served.url, "MODELYARD_API_KEY": key, "COLUMNS": "200"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "modelyard.cli",
        *arguments,
        env={**clean, **variables, **({"MODELYARD_MONGO_URL": mongo_url} if mongo_url else {})},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), err.decode())


async def test_from_the_first_key_to_the_revoking_of_the_second(
    served: ServedGateway, mongo_url: str
) -> None:
    first = await run(served, "keys", "bootstrap", mongo_url=mongo_url)
    assert first.code == 0, first.err
    admin = first.out.strip()
    assert ApiKey.parse(admin) is not None
    assert first.out == admin + "\n"
    assert "shown this once" in first.err

    again = await run(served, "keys", "bootstrap", mongo_url=mongo_url)
    assert (again.code, again.out) == (1, "")
    assert "--force" in again.err
    forced = await run(served, "keys", "bootstrap", "--force", mongo_url=mongo_url)
    assert forced.code == 0

    made = await run(
        served, "keys", "create", "shop", "--role", "viewer", "--expires", "90d", key=admin
    )
    assert made.code == 0, made.err
    viewer = ApiKey.parse(made.out.strip())
    assert viewer is not None
    listed = await run(served, "keys", "list", key=admin)
    assert viewer.key_id in listed.out
    assert "jobs:read" in listed.out
    assert listed.out.count(admin.split("_")[1]) == 2, "itself, and as who created the other"
    for secret in (viewer.secret, admin.rpartition("_")[2]):
        assert secret not in listed.out + listed.err + made.err + again.err

    assert (await run(served, "jobs", key=viewer.text)).code == 0
    refused = await run(served, "cordon", "h", key=viewer.text)
    assert refused.code == 1
    assert "hosts:admin" in refused.err
    assert "modelyard keys create" in refused.err

    assert (await run(served, "keys", "revoke", viewer.key_id, key=admin)).code == 0
    gone = await run(served, "jobs", key=viewer.text)
    assert gone.code == 1
    assert "MODELYARD_API_KEY" in gone.err
    assert viewer.secret not in gone.out + gone.err


async def test_scopes_one_by_one_and_json_for_machines(
    served: ServedGateway, mongo_url: str
) -> None:
    admin = (await run(served, "keys", "bootstrap", mongo_url=mongo_url)).out.strip()
    scopes = ["--scope", "jobs:infer", "--scope", "jobs:read"]
    made = await run(served, "--json", "keys", "create", "front end", *scopes, key=admin)
    created = json.loads(made.out)
    assert created["key"]["scopes"] == ["jobs:infer", "jobs:read"]
    assert created["key"]["expires_at"] is None
    assert ApiKey.parse(created["api_key"]) is not None


@pytest.mark.parametrize(
    "arguments",
    [
        ("keys", "create", "x"),
        ("keys", "create", "x", "--role", "user", "--scope", "jobs:read"),
        ("keys", "create", "x", "--role", "root"),
        ("keys", "create", "x", "--role", "user", "--expires", "soon"),
        ("keys", "create", "x", "--role", "user", "--expires", "0d"),
        ("keys", "create", "x", "--role", "user", "--expires", "999999999w"),
    ],
)
async def test_what_is_not_clear_is_wrong_usage(
    served: ServedGateway, arguments: tuple[str, ...]
) -> None:
    assert (await run(served, *arguments)).code == 2


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (["--expires", "999999999w"], "--expires"),
        (["--expires", "3661d"], "--expires"),
        (["--name", "a\nb"], "name"),
        (["--name", ""], "name"),
        (["--name", "x" * 65], "name"),
    ],
)
async def test_bootstrap_refuses_what_the_gateway_would_refuse(
    served: ServedGateway, mongo_url: str, options: list[str], wrong: str
) -> None:
    refused = await run(served, "keys", "bootstrap", *options, mongo_url=mongo_url)
    assert (refused.code, refused.out) == (2, "")
    assert wrong in refused.err
    assert "Traceback" not in refused.err
    assert await served.store.api_keys.all() == []


async def test_bootstrap_says_when_mongodb_is_away(served: ServedGateway) -> None:
    away = await run(served, "keys", "bootstrap", mongo_url="mongodb://127.0.0.1:1/x")
    assert (away.code, away.out) == (3, "")
    assert "MongoDB" in away.err


async def test_no_key_and_a_wrong_one_are_told_with_what_to_do(served: ServedGateway) -> None:
    for key in ("", ApiKey.new().text):
        refused = await run(served, "hosts", key=key)
        assert refused.code == 1
        assert "MODELYARD_API_KEY" in refused.err
        assert not key or key not in refused.err


async def test_a_key_that_cant_be_sent_is_refused_without_repeating_it(
    served: ServedGateway,
) -> None:
    refused = await run(served, "hosts", key="my_secret\x01part")
    assert refused.code == 2
    assert "MODELYARD_API_KEY" in refused.err
    assert "secret" not in refused.err


async def test_the_library_makes_lists_and_revokes_keys(
    served: ServedGateway, mongo_url: str
) -> None:
    admin = (await run(served, "keys", "bootstrap", mongo_url=mongo_url)).out.strip()
    async with AsyncModelyard(served.url, api_key=admin) as client:
        created = await client.create_key("x", scopes=[Scope.HOSTS_READ], expires_in_s=60)
        assert created.key in await client.keys()
        async with AsyncModelyard(served.url, api_key=created.api_key) as narrow:
            assert await narrow.hosts() == ()
            with pytest.raises(ApiError) as forbidden:
                await narrow.models()
            assert (forbidden.value.code, forbidden.value.status) == ("forbidden", 403)
            assert (await client.revoke_key(created.key.key_id)).revoked_at is not None
            with pytest.raises(ApiError) as unknown:
                await narrow.hosts()
            assert unknown.value.code == "unauthenticated"
            assert created.api_key not in str(unknown.value) + repr(unknown.value)
