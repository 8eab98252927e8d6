"""The first API key, written directly to MongoDB: whoever can write there may create one."""

from pydantic import ValidationError

from modelyard.contract.access.api_keys import ApiKey, CreatedApiKey, NewApiKey
from modelyard.contract.access.scopes import Role, Scope
from modelyard.contract.validation import first_errors
from modelyard.store import Store
from modelyard.store.api_keys import NewApiKeyRecord
from modelyard.store.doctor.reaching import reaching

STORE_TIMEOUT_S = 5.0


async def bootstrap_key(
    mongo_url: str, name: str, expires_in_s: float | None, *, force: bool
) -> CreatedApiKey | list[str]:
    """Return a new admin key, or the ids of valid keys that may create others, unless `force`.

    Raises `ValueError` for a URL, a user of MongoDB, a name or an expiry that can't be used,
    `StoreUnavailableError` and `StoreUnreadableError`.
    """
    try:
        request = NewApiKey(name=name, role=Role.ADMIN, expires_in_s=expires_in_s)
    except ValidationError as error:
        raise ValueError(f"The key was not created. {first_errors(error)}") from error
    store = Store(mongo_url, name="keys", timeout_s=STORE_TIMEOUT_S)
    try:
        with reaching(mongo_url):
            valid = await store.api_keys.active_with(Scope.KEYS_ADMIN)
            if valid and not force:
                return [record.key_id for record in valid]
            key = ApiKey.new()
            record = await store.api_keys.add(NewApiKeyRecord.of(key, request))
    finally:
        store.close()
    return CreatedApiKey(api_key=key.text, key=record.view())
