"""API keys as the gateway knows them: read from MongoDB, and remembered for a while."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog

from gateway.availability import Availability
from gateway.problems import UnauthenticatedError
from modelyard.contract.access.api_keys import ApiKey
from modelyard.contract.access.scopes import Principal
from modelyard.contract.errors import StoreUnavailableError
from modelyard.process.batching import Coalescer
from modelyard.store import Store
from modelyard.store.api_keys import ApiKeyRecord

log = structlog.get_logger(__name__)

FRESH_S = 5.0
"""How long a key counts as it was read: after so long, one that was revoked is refused."""
UNKNOWN_S = 5.0
"""How long a key that MongoDB does not know is refused without asking again."""
KEPT_S = 3_600.0
"""How long a key that was read still counts while MongoDB is away."""
READ_S = 0.5
"""How long a request waits for a key that was read before; then what was read still counts."""
FIRST_READ_S = 1.8
"""How long a request waits for a key that was never read; then it gets 503."""
NOTE_EVERY_S = 60.0
"""How often the last uses of keys are written."""
MAX_REMEMBERED = 10_000
MAX_GROUP = 500

NOT_VALID = "The API key is not valid: it is unknown, revoked or expired."


@dataclass(frozen=True, slots=True)
class _Remembered:
    record: ApiKeyRecord
    read_at: float
    """By the gateway's own clock."""


class KeyRing:
    """Tells whose key it is. Run `run`, which reads keys and writes when they were used."""

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
        self._remembered: dict[str, _Remembered] = {}
        self._unknown: dict[str, float] = {}
        """When MongoDB said that it does not know the key."""
        self._uses: dict[str, datetime] = {}
        # Requests that come with unknown keys at the same time share one query.
        self._reading: Coalescer[str, ApiKeyRecord | None] = Coalescer(
            self._read_group, max_items=MAX_GROUP
        )

    async def run(self) -> None:
        """Read groups of keys until cancelled."""
        await self._reading.run()

    async def write_uses(self) -> None:
        """Write from time to time when keys were used last. Runs until cancelled."""
        while True:
            await asyncio.sleep(NOTE_EVERY_S)
            await self.note_uses()

    async def note_uses(self) -> None:
        """Write when keys were used last; what can't be written now is written the next time.

        A large write may be slow, so its failure says nothing about MongoDB.
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
        """Return who has the key.

        Raises `UnauthenticatedError`, and `StoreUnavailableError` if the key is not one that was
        read within `KEPT_S` and MongoDB does not say.
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
        """Tell whether the key was valid when it was read last, however long ago."""
        known = self._remembered.get(key.key_id)
        return known is not None and _is_valid(known.record, key, datetime.now(UTC))

    def forget(self, key_id: str) -> None:
        """Read the key anew the next time."""
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
        503s for every client, so this looks at `down` and never sets it.
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
            # At its end, so that those that are not used are the first ones to be dropped.
            self._remembered.pop(key_id, None)
            self._unknown.pop(key_id, None)
            if key_id in found:
                self._remembered[key_id] = _Remembered(found[key_id], asked_at)
            else:
                self._unknown[key_id] = asked_at
        _drop_oldest(self._remembered)
        _drop_oldest(self._unknown)
        return [found.get(key_id) for key_id in wanted]


def _is_valid(record: ApiKeyRecord, key: ApiKey, now: datetime) -> bool:
    ended = record.revoked_at is not None or (
        record.expires_at is not None and record.expires_at <= now
    )
    return key.has_hash(record.secret_hash) and not ended


def _drop_oldest(entries: dict[str, Any]) -> None:
    while len(entries) > MAX_REMEMBERED:
        del entries[next(iter(entries))]
