"""Values of settings as people may see them: without passwords."""

from pydantic import SecretStr

from modelyard.contract.access.masked_urls import MASK, is_url, masked_url
from modelyard.contract.strict_json import JsonValue
from modelyard.process.config.sources import secrets_of
from modelyard.process.settings import ConfiguredSettings


def masked_settings(settings: ConfiguredSettings) -> dict[str, JsonValue]:
    """Return each field's value as JSON, with every secret and every password in a URL masked."""
    values: dict[str, JsonValue] = settings.model_dump(mode="json")
    for field in secrets_of(type(settings)):
        secret = getattr(settings, field)
        values[field] = None if secret is None else _masked_secret(secret)
    return {field: _masked(value) for field, value in values.items()}


def _masked(value: JsonValue) -> JsonValue:
    return masked_url(value) if isinstance(value, str) and is_url(value) else value


def _masked_secret(secret: SecretStr) -> str:
    text = secret.get_secret_value()
    return masked_url(text) if is_url(text) else MASK
