"""`/v1/keys`: create, list and revoke API keys."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Request, Response

from gateway import openapi
from gateway.access.authentication import needs
from gateway.monitoring.operator_log import log_change
from gateway.routes.dependencies import GatewayDependencies, answer
from gateway.submission.requests import validated
from modelyard.contract.access.api_keys import (
    ApiKey,
    ApiKeyList,
    ApiKeyView,
    CreatedApiKey,
    NewApiKey,
)
from modelyard.contract.access.scopes import Principal, Scope
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.ids import Id
from modelyard.store.api_keys import NewApiKeyRecord

router = APIRouter(prefix="/v1/keys", tags=["keys"])

Admin = Annotated[Principal, needs(Scope.KEYS_ADMIN)]


@router.post(
    "",
    status_code=201,
    response_model=CreatedApiKey,
    responses=openapi.CREATE_KEY_ANSWERS,
    openapi_extra=openapi.KEY_BODY,
    summary="Create an API key",
)
async def create_key(request: Request, gateway: GatewayDependencies, admin: Admin) -> Response:
    """Create a key with some of the scopes of the caller's key.

    Only this answer contains the key's secret. The key expires no later than the caller's: a longer
    time is refused with `grant_too_large`, and without a time both expire together.

    Each call creates another key. After a 503 one may exist nevertheless: list the keys, revoke it.
    """
    pending = validated(NewApiKey, await gateway.reader.entry(request))
    _refuse_more_than_own(pending, admin)
    key = ApiKey.new()
    new = NewApiKeyRecord.of(
        key,
        pending,
        tenant=admin.tenant,
        created_by=admin.key_id,
        expires_by=admin.expires_at,
    )
    record = await gateway.reading.ask(lambda: gateway.store.api_keys.add(new))
    log_change(
        admin,
        "key.create",
        created_key_id=key.key_id,
        name=record.name,
        scopes=sorted(scope.value for scope in record.scopes),
        expires_at=record.expires_at,
    )
    created = CreatedApiKey(api_key=key.text, key=record.view())
    return answer(created, 201, {"Cache-Control": "no-store"})


@router.get("", response_model=ApiKeyList, responses=openapi.READ_ANSWERS, summary="List API keys")
async def list_keys(gateway: GatewayDependencies, _admin: Admin) -> Response:
    """Return all keys without their secrets, the oldest first."""
    records = await gateway.reading.ask_for_much(gateway.store.api_keys.all)
    return answer(ApiKeyList(keys=tuple(record.view() for record in records)))


@router.delete(
    "/{key_id}",
    response_model=ApiKeyView,
    responses=openapi.ONE_ANSWERS,
    summary="Revoke an API key",
)
async def revoke_key(key_id: Id, gateway: GatewayDependencies, admin: Admin) -> Response:
    """Revoke a key for ever: within seconds every gateway refuses it. Its record remains."""
    record = await gateway.reading.ask(lambda: gateway.store.api_keys.revoke(key_id))
    gateway.keys.forget(key_id)
    if record is None:
        raise ModelyardError(ErrorCode.NOT_FOUND, f"There is no API key {key_id}.")
    log_change(admin, "key.revoke", revoked_key_id=key_id)
    return answer(record.view())


def _refuse_more_than_own(pending: NewApiKey, admin: Principal) -> None:
    """Refuse a key with more scopes, or a longer life, than the key that creates it."""
    lacking = sorted(pending.granted - admin.scopes)
    if lacking:
        raise ModelyardError(ErrorCode.GRANT_TOO_LARGE, _sentence_of_lacking(lacking))
    if admin.expires_at is None or pending.expires_in_s is None:
        return
    if datetime.now(UTC) + timedelta(seconds=pending.expires_in_s) > admin.expires_at:
        raise ModelyardError(
            ErrorCode.GRANT_TOO_LARGE,
            f"Your API key expires at {admin.expires_at.isoformat(timespec='seconds')}, so it "
            "can't create a key that is valid for longer. Request a shorter time, or none: "
            "then the new key expires when yours does.",
        )


def _sentence_of_lacking(lacking: Sequence[str]) -> str:
    *others, last = lacking
    if not others:
        return f"Your API key lacks the scope {last}, so it can't give it to another key."
    scopes = f"{', '.join(others)} and {last}"
    return f"Your API key lacks the scopes {scopes}, so it can't give them to another key."
