"""`/v1/keys`: API keys, their making and their end."""

from typing import Annotated

from fastapi import APIRouter, Request, Response

from gateway import openapi
from gateway.authentication import needs
from gateway.problems import ForbiddenError
from gateway.requests import validated
from gateway.routes.parts import Parts, answer
from gateway.views import api_key_view
from modelyard.contract.access import Principal, Scope
from modelyard.contract.api_keys import ApiKey, ApiKeyList, ApiKeyView, CreatedApiKey, NewApiKey
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
async def create_key(request: Request, gateway: Parts, admin: Admin) -> Response:
    """Create a key with scopes that the caller has himself; its secret is told this once.

    Each call makes another key. After a 503 one may have been made all the same: revoke it.
    """
    asked = validated(NewApiKey, await gateway.reader.entry(request))
    beyond = sorted(asked.granted - admin.scopes)
    if beyond:
        raise ForbiddenError(*beyond)
    key = ApiKey.new()
    new = NewApiKeyRecord(
        key_id=key.key_id,
        secret_hash=key.secret_hash,
        name=asked.name,
        scopes=asked.granted,
        tenant=admin.tenant,
        created_by=admin.key_id,
        expires_in_s=asked.expires_in_s,
    )
    record = await gateway.reading.ask(lambda: gateway.store.api_keys.add(new))
    created = CreatedApiKey(api_key=key.text, key=api_key_view(record))
    return answer(created, 201, {"Cache-Control": "no-store"})


@router.get("", response_model=ApiKeyList, responses=openapi.READ_ANSWERS, summary="List API keys")
async def list_keys(gateway: Parts, _admin: Admin) -> Response:
    """Return every key, the oldest first, without its secret."""
    records = await gateway.reading.ask(gateway.store.api_keys.all)
    return answer(ApiKeyList(keys=tuple(api_key_view(record) for record in records)))


@router.delete(
    "/{key_id}",
    response_model=ApiKeyView,
    responses=openapi.ONE_ANSWERS,
    summary="Revoke an API key",
)
async def revoke_key(key_id: Id, gateway: Parts, _admin: Admin) -> Response:
    """End a key for ever: within seconds no gateway takes it any more. The record of it stays."""
    record = await gateway.reading.ask(lambda: gateway.store.api_keys.revoke(key_id))
    gateway.keys.forget(key_id)
    if record is None:
        raise ModelyardError(ErrorCode.NOT_FOUND, f"There is no API key {key_id}.")
    return answer(api_key_view(record))
