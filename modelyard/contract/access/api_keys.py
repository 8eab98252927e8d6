"""API keys: their text, what is stored of them, and how the HTTP API shows them; no I/O.

A key is `my_<id>_<secret>`. The id is public and names the key in logs and lists. The secret has
256 random bits, so its plain SHA-256 can't be guessed back and needs no salt.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.config import JsonDict

from modelyard.contract.access.scopes import SCOPES_OF, Role, Scope
from modelyard.contract.answers import ApiAnswer
from modelyard.contract.ids import MustBe

MAX_EXPIRY_S = 10 * 366 * 86_400

_KEY = re.compile(r"my_([0-9a-f]{16})_([0-9a-f]{64})")

KeyName = Annotated[
    str,
    StringConstraints(strict=True, pattern=r"^[ -~]{1,64}$"),
    MustBe("1 to 64 printable ASCII characters"),
]
"""What people call a key: 1 to 64 printable ASCII characters."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key in the clear. It is never stored or logged, and its secret is in no `repr`."""

    key_id: str
    secret: str = field(repr=False)

    @classmethod
    def new(cls) -> Self:
        """Return a new random key."""
        return cls(secrets.token_hex(8), secrets.token_hex(32))

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the key that `text` is; None if it is not a key."""
        match = _KEY.fullmatch(text)
        return cls(match.group(1), match.group(2)) if match else None

    @property
    def text(self) -> str:
        """The key as its owner sends it."""
        return f"my_{self.key_id}_{self.secret}"

    @property
    def secret_hash(self) -> str:
        """The hash of the secret, which is stored in its place."""
        return hashlib.sha256(self.secret.encode()).hexdigest()

    def has_hash(self, stored: str) -> bool:
        """Compare with a stored hash, in constant time."""
        return hmac.compare_digest(self.secret_hash, stored)


_NULL: JsonDict = {"type": "null"}
_GIVEN: JsonDict = {"not": _NULL}


class NewApiKey(BaseModel):
    """A request for a new key: what it may do, by role or by scopes, and for how long."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        json_schema_extra={
            "oneOf": [
                {"required": ["role"], "properties": {"role": _GIVEN, "scopes": _NULL}},
                {"required": ["scopes"], "properties": {"scopes": _GIVEN, "role": _NULL}},
            ]
        },
    )

    name: KeyName
    role: Role | None = None
    scopes: tuple[Scope, ...] | None = Field(default=None, min_length=1, max_length=32)
    expires_in_s: float | None = Field(
        default=None, gt=0, le=MAX_EXPIRY_S, strict=True, allow_inf_nan=False
    )
    """Seconds from now; null: it expires when the key that creates it does, if that one does."""

    @model_validator(mode="after")
    def _role_or_scopes(self) -> Self:
        if (self.role is None) == (self.scopes is None):
            raise ValueError("A key has either a role or scopes.")
        return self

    @property
    def granted(self) -> frozenset[Scope]:
        """The scopes of the new key."""
        return SCOPES_OF[self.role] if self.role is not None else frozenset(self.scopes or ())


class ApiKeyView(ApiAnswer):
    """What the API shows of a key: everything but its secret."""

    key_id: str
    name: str
    tenant: str
    scopes: tuple[str, ...]
    created_by: str | None = None
    """The id of the key that created it; null for one that `modelyard keys bootstrap` created."""
    created_at: datetime | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    """Written about once a minute."""


class CreatedApiKey(ApiAnswer):
    """A key that was just created; `api_key` is shown this once and never again."""

    api_key: str = Field(repr=False)
    key: ApiKeyView


class ApiKeyList(ApiAnswer):
    """All keys, the oldest first."""

    keys: tuple[ApiKeyView, ...]
