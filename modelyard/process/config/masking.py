"""Values of settings as people may see them: without passwords."""

import re

from pydantic import SecretStr

from modelyard.contract.strict_json import JsonValue
from modelyard.process.config.sources import secrets_of
from modelyard.process.settings import ConfiguredSettings

MASK = "***"
_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*://)(.*)", re.DOTALL)
_SECRET_OPTION = re.compile(
    r"([?&][^=&]*(?:password|secret|token|properties)[^=&]*=)[^&]*", re.IGNORECASE
)


def masked_settings(settings: ConfiguredSettings) -> dict[str, JsonValue]:
    """Return each field's value as JSON, with every secret and every password in a URL masked."""
    values: dict[str, JsonValue] = settings.model_dump(mode="json")
    for field in secrets_of(type(settings)):
        secret = getattr(settings, field)
        values[field] = None if secret is None else _masked_secret(secret)
    return {field: _masked(value) for field, value in values.items()}


def masked_url(text: str) -> str:
    """Return a URL without its password, and without the options that hold one.

    A password may contain characters that a URL has to escape, so everything from the first colon
    to the last `@` is masked, rather too much than too little.
    """
    found = _URL.fullmatch(text)
    if found is None:
        return text
    scheme, rest = found.groups()
    user, at, place = rest.rpartition("@")
    if at:
        name, colon, _password = user.partition(":")
        rest = f"{name}{colon}{MASK if colon else ''}@{place}"
    return scheme + _SECRET_OPTION.sub(rf"\g<1>{MASK}", rest)


def _masked(value: JsonValue) -> JsonValue:
    return masked_url(value) if isinstance(value, str) else value


def _masked_secret(secret: SecretStr) -> str:
    text = secret.get_secret_value()
    return masked_url(text) if _URL.fullmatch(text) else MASK
