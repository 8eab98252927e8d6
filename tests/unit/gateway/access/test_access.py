"""Scopes at the routes, keys in the clear, and the settings that open the door."""

import resource
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from gateway.__main__ import main
from gateway.access.authentication import Needs
from gateway.access.failed_authentications import (
    MAX_ADDRESSES,
    MOST_PAUSE_S,
    FailedAuthentications,
    pause_s,
)
from gateway.app import create_app
from gateway.http.listener import connections_within_file_limit
from gateway.service import Gateway
from gateway.settings import GatewaySettings
from modelyard.broker import Broker
from modelyard.contract.access.api_keys import ApiKey, CreatedApiKey
from modelyard.contract.access.scopes import SCOPES_OF, Role, Scope, scopes_to_submit
from modelyard.contract.states import Verb
from modelyard.process.config.sources import WrongSettingsError
from modelyard.process.settings import read_settings
from modelyard.store import Store

PUBLIC = {"/livez", "/readyz", "/openapi.json", "/docs", "/docs/{name}"}


@pytest.fixture
async def app() -> AsyncIterator[FastAPI]:
    store = Store("mongodb://127.0.0.1:1/x", name="test", timeout_s=0.1)
    gateway = Gateway(store, Broker("amqp://127.0.0.1:1", name="test"), with_keys=True)
    yield create_app(gateway)
    await gateway.close()


def _routes(routes: Sequence[Any]) -> Iterator[Any]:
    """Yield every route, those of included routers too."""
    for route in routes:
        inner = getattr(route, "routes", None)
        if inner is None and hasattr(route, "original_router"):
            inner = route.original_router.routes
        if inner:
            yield from _routes(inner)
        else:
            yield route


def _needs(dependant: Dependant) -> list[Needs]:
    own = [dependant.call] if isinstance(dependant.call, Needs) else []
    return own + [one for inner in dependant.dependencies for one in _needs(inner)]


def _unguarded(app: FastAPI) -> set[str]:
    found = set()
    for route in _routes(app.routes):
        guards = _needs(route.dependant) if isinstance(route, APIRoute) else []
        if not guards or not all(one.scopes for one in guards):
            found.add(route.path)
    return found


def test_every_route_names_its_scope(app: FastAPI) -> None:
    seen = {route.path for route in _routes(app.routes)}
    assert {"/inference_router", "/v1/jobs/batch", "/v1/keys/{key_id}"} <= seen
    assert _unguarded(app) == PUBLIC


def test_a_route_without_a_scope_is_found(app: FastAPI) -> None:
    @app.get("/v1/forgotten")
    async def forgotten() -> None:
        """Nobody asked who may."""

    assert _unguarded(app) == PUBLIC | {"/v1/forgotten"}


def test_the_openapi_document_says_which_scope_opens_what(app: FastAPI) -> None:
    document = app.openapi()
    assert document["components"]["securitySchemes"]["apiKey"]["scheme"] == "bearer"
    for path, methods in document["paths"].items():
        for operation in methods.values():
            if path in PUBLIC:
                assert "security" not in operation
                continue
            [scheme] = operation["security"]
            assert set(scheme["apiKey"]) <= set(Scope)
            assert {"401", "403"} <= set(operation["responses"])
    submit = document["paths"]["/v1/jobs"]["post"]["security"]
    assert submit == [{"apiKey": ["jobs:submit", "jobs:infer"]}]


def test_each_role_may_what_the_one_before_may_and_admins_everything() -> None:
    sets = [SCOPES_OF[role] for role in Role]
    assert all(less < more for less, more in pairwise(sets))
    assert sets[-1] == set(Scope)
    assert not any(scope.endswith(("write", "admin", "submit")) for scope in SCOPES_OF[Role.VIEWER])


def test_an_inference_scope_submits_no_other_verb() -> None:
    assert [verb for verb in Verb if Scope.JOBS_INFER in scopes_to_submit(verb)] == [Verb.INFER]
    assert all(Scope.JOBS_SUBMIT in scopes_to_submit(verb) for verb in Verb)


def test_a_key_is_random_parses_as_itself_and_hides_its_secret() -> None:
    key, other = ApiKey.new(), ApiKey.new()
    assert ApiKey.parse(key.text) == key != other
    assert len(bytes.fromhex(key.secret)) == 32
    assert key.has_hash(key.secret_hash)
    assert not key.has_hash(other.secret_hash)
    assert key.secret not in key.secret_hash
    created = CreatedApiKey.model_validate(
        {"api_key": key.text, "key": {"key_id": "a", "name": "n", "tenant": "t", "scopes": []}}
    )
    assert key.secret not in repr(key) + repr(created)
    for text in (key.text + "\n", " " + key.text, key.text.replace("my_", "MY_")):
        assert ApiKey.parse(text) is None


# --- failures ---


def test_the_pause_after_a_failure_grows_and_is_bounded() -> None:
    pauses = [pause_s(count) for count in (1, 2, 3, 10, 10**9)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == MOST_PAUSE_S


async def test_failures_are_counted_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.access.failed_authentications.FIRST_PAUSE_S", 0.0)
    failed = FailedAuthentications(clock=lambda: 0.0)
    for n in range(MAX_ADDRESSES + 10):
        await failed.hold_back(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", None)
    assert len(failed._failures) == MAX_ADDRESSES
    assert not failed._paused.held


async def test_one_ipv6_network_counts_as_one_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.access.failed_authentications.FIRST_PAUSE_S", 0.0)
    failed = FailedAuthentications(clock=lambda: 0.0)
    for address in ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", None, "somewhere"):
        await failed.hold_back(address, None)
    assert sorted(one.count for one in failed._failures.values()) == [1, 1, 1, 2]


# --- settings ---


def settings(monkeypatch: pytest.MonkeyPatch, **variables: str) -> GatewaySettings:
    for name, value in variables.items():
        monkeypatch.setenv(f"MODELYARD_{name}", value)
    return read_settings(GatewaySettings)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_on_loopback_nobody_has_to_say_who_he_is(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    assert settings(monkeypatch, GATEWAY_HOST=host).auth == frozenset()
    assert settings(monkeypatch, GATEWAY_HOST=host, AUTH="none").auth == frozenset()
    assert settings(monkeypatch, GATEWAY_HOST=host, AUTH="keys").auth == {"keys"}


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "gateway", "127.1", "::ffff:127.0.0.1"]
)
@pytest.mark.parametrize("auth", [None, "none"])
def test_elsewhere_the_gateway_refuses_to_listen_without_keys(
    monkeypatch: pytest.MonkeyPatch, host: str, auth: str | None
) -> None:
    with pytest.raises(WrongSettingsError, match=r"MODELYARD_AUTH.*expected keys.*bootstrap"):
        settings(monkeypatch, GATEWAY_HOST=host, **({"AUTH": auth} if auth else {}))
    assert settings(monkeypatch, GATEWAY_HOST=host, AUTH="keys").auth == {"keys"}


@pytest.mark.parametrize("auth", ["", "jwt", "keys,none", "none,keys", "Keys", "keys,jwt", ","])
def test_a_method_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch, auth: str) -> None:
    with pytest.raises(WrongSettingsError, match="MODELYARD_AUTH is wrong: expected none or keys"):
        settings(monkeypatch, AUTH=auth)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GATEWAY_ALLOWED_HOSTS", "modelyard.example"),
        ("GATEWAY_ALLOWED_HOSTS", '["modelyard.example:443"]'),
        ("GATEWAY_ALLOWED_HOSTS", '["https://modelyard.example"]'),
        ("GATEWAY_ALLOWED_HOSTS", '["*"]'),
        ("GATEWAY_ALLOWED_HOSTS", '[""]'),
        ("GATEWAY_ALLOWED_ORIGINS", '["*"]'),
        ("GATEWAY_ALLOWED_ORIGINS", '["null"]'),
        ("GATEWAY_ALLOWED_ORIGINS", '["https://app.example/"]'),
        ("GATEWAY_ALLOWED_ORIGINS", '["app.example"]'),
    ],
)
def test_hosts_and_origins_that_could_never_match_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    with pytest.raises(
        WrongSettingsError, match=f"MODELYARD_{name} is wrong: expected a JSON list"
    ):
        settings(monkeypatch, **{name: value})


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_an_open_door_without_keys_is_exit_code_2_and_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host: str
) -> None:
    monkeypatch.setenv("MODELYARD_GATEWAY_HOST", host)
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    [sentence] = capsys.readouterr().err.splitlines()
    assert "Set MODELYARD_AUTH=keys" in sentence


# --- file descriptors ---


@pytest.mark.parametrize(
    ("soft", "hard", "allowed", "raised_to"),
    [
        (1_024, 4_096, 1_000, 1_200),
        (1_024, resource.RLIM_INFINITY, 1_000, 1_200),
        (4_096, 4_096, 1_000, None),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 1_000, None),
        (256, 1_024, 824, 1_024),
        (100, 100, 50, 100),
    ],
)
def test_no_more_connections_are_taken_than_there_are_file_descriptors(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, allowed: int, raised_to: int | None
) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, given: limits.append(given))
    assert connections_within_file_limit(1_000) == allowed
    assert limits == ([(raised_to, hard)] if raised_to else [])
