"""The first API key, straight in MongoDB: whoever can write there may make one."""

from modelyard.contract.access import SCOPES_OF, Role, Scope
from modelyard.contract.api_keys import ApiKey, ApiKeyView, CreatedApiKey
from modelyard.store import Store
from modelyard.store.api_keys import NewApiKeyRecord

STORE_TIMEOUT_S = 5.0


async def bootstrap_key(
    mongo_url: str, name: str, expires_in_s: float | None, *, force: bool
) -> CreatedApiKey | list[str]:
    """Return a new admin key, or without `force` the ids of the valid ones that there are.

    Raises `ValueError` for a URL that can't be used and `StoreUnavailableError`.
    """
    store = Store(mongo_url, name="keys", timeout_s=STORE_TIMEOUT_S)
    try:
        valid = await store.api_keys.active_with(Scope.KEYS_ADMIN)
        if valid and not force:
            return [record.key_id for record in valid]
        key = ApiKey.new()
        new = NewApiKeyRecord(
            key_id=key.key_id,
            secret_hash=key.secret_hash,
            name=name,
            scopes=SCOPES_OF[Role.ADMIN],
            expires_in_s=expires_in_s,
        )
        record = await store.api_keys.add(new)
    finally:
        store.close()
    view = ApiKeyView.model_validate({**record.model_dump(), "scopes": sorted(record.scopes)})
    return CreatedApiKey(api_key=key.text, key=view)
