"""The key ring: a cache of the API keys in MongoDB."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from gateway.availability import Availability
from gateway.caches.newest import Newest
from gateway.problems import UnauthenticatedError
from modelyard.contract.access.api_keys import ApiKey
from modelyard.contract.access.scopes import Principal
from modelyard.contract.errors import StoreUnavailableError
from modelyard.process.batching import Coalescer
from modelyard.store import Store
from modelyard.store.api_keys import ApiKeyRecord

log = structlog.get_logger(__name__)

FRESH_S = 5.0
"""How long a cached key is used without reading it again: a revoked key is refused after it."""
UNKNOWN_S = 5.0
"""How long a key that is not in MongoDB is refused without reading again."""
KEPT_S = 3_600.0
"""How long a cached key stays valid while MongoDB is down."""
READ_S = 0.5
"""How long a request waits for a cached key to be read again; then it uses the cached one."""
FIRST_READ_S = 1.8
"""How long a request waits for a key that is not cached; then it gets 503."""
NOTE_EVERY_S = 60.0
"""Seconds between two writes of the keys' last uses."""
MAX_REMEMBERED = 10_000
MAX_GROUP = 500

NOT_VALID = "The API key is not valid: it is unknown, revoked or expired."


@dataclass(frozen=True, slots=True)
class _Remembered:
    record: ApiKeyRecord
    read_at: float
    """By the gateway's monotonic clock."""


class KeyRing:
    """Authenticates API keys. It needs `run` (reads keys) and `write_uses` to be running."""

    def __init__(
        self,
        store: Store,
        availability: Availability,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`availability` is that of the store."""
        self._store = store
        self._availability = availability
        self._clock = clock
        self._remembered: Newest[str, _Remembered] = Newest(MAX_REMEMBERED)
        self._unknown: Newest[str, float] = Newest(MAX_REMEMBERED)
        """When a key was not found in MongoDB."""
        self._uses: dict[str, datetime] = {}
        # Concurrent reads of keys share one query.
        self._reading: Coalescer[str, ApiKeyRecord | None] = Coalescer(
            self._read_group, max_items=MAX_GROUP
        )

    async def run(self) -> None:
        """Read groups of keys until cancelled."""
        await self._reading.run()

    async def write_uses(self) -> None:
        """Write the keys' last uses every `NOTE_EVERY_S` seconds. Runs until cancelled."""
        while True:
            await asyncio.sleep(NOTE_EVERY_S)
            await self.note_uses()

    async def note_uses(self) -> None:
        """Write the keys' last uses; if that fails, the next call writes them.

        A large write may be slow, so its failure does not mark MongoDB as down.
        """
        if self._availability.down:
            return
        uses, self._uses = self._uses, {}
        try:
            await self._store.api_keys.note_uses(uses)
        except StoreUnavailableError as error:
            log.warning("api_keys.uses_not_written", keys=len(uses), reason=error.message)
            self._uses = uses | self._uses

    async def principal(self, key: ApiKey) -> Principal:
        """Return the principal of a key.

        Raises `UnauthenticatedError`, and `StoreUnavailableError` if MongoDB does not answer and
        the key was not read within the last `KEPT_S` seconds.
        """
        record = await self._record(key.key_id)
        now = datetime.now(UTC)
        if record is None or not _is_valid(record, key, now):
            raise UnauthenticatedError(NOT_VALID)
        self._uses[key.key_id] = now
        return Principal(
            record.name,
            record.scopes,
            tenant=record.tenant,
            key_id=record.key_id,
            expires_at=record.expires_at,
        )

    def remembers(self, key: ApiKey) -> bool:
        """Tell whether the key is cached as valid, however long ago it was read."""
        known = self._remembered.get(key.key_id)
        return known is not None and _is_valid(known.record, key, datetime.now(UTC))

    def forget(self, key_id: str) -> None:
        """Drop the key from the cache, so that the next request reads it."""
        self._remembered.pop(key_id, None)
        self._unknown.pop(key_id, None)

    async def _record(self, key_id: str) -> ApiKeyRecord | None:
        known = self._remembered.get(key_id)
        age = self._clock() - known.read_at if known else None
        if known is not None and age is not None and age < FRESH_S:
            return known.record
        unknown_at = self._unknown.get(key_id)
        if unknown_at is not None and self._clock() - unknown_at < UNKNOWN_S:
            return None
        try:
            return await self._read(key_id, READ_S if known else FIRST_READ_S)
        except StoreUnavailableError:
            if known is None or age is None or age > KEPT_S:
                raise
            return known.record

    async def _read(self, key_id: str, within_s: float) -> ApiKeyRecord | None:
        """Read a key; raises `StoreUnavailableError`.

        Anyone may send keys. If slow reads of them marked MongoDB as down, anyone could cause
        503s for every client. So this method checks `down` but never sets it.
        """
        if self._availability.down:
            raise StoreUnavailableError
        try:
            async with asyncio.timeout(within_s):
                return await self._reading.submit(key_id)
        except TimeoutError as error:
            raise StoreUnavailableError from error

    async def _read_group(self, wanted: Sequence[str]) -> list[ApiKeyRecord | None]:
        asked_at = self._clock()
        found = await self._store.api_keys.get_many(wanted)
        for key_id in wanted:
            self.forget(key_id)
            if key_id in found:
                self._remembered[key_id] = _Remembered(found[key_id], asked_at)
            else:
                self._unknown[key_id] = asked_at
        return [found.get(key_id) for key_id in wanted]


def _is_valid(record: ApiKeyRecord, key: ApiKey, now: datetime) -> bool:
    ended = record.revoked_at is not None or (
        record.expires_at is not None and record.expires_at <= now
    )
    return key.has_hash(record.secret_hash) and not ended
