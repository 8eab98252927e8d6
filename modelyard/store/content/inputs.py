"""Inputs that clients upload before the requests that name them."""

import hashlib
from collections.abc import AsyncIterator
from collections.abc import Set as AbstractSet

from modelyard.contract.content.transfers import PIECE_BYTES
from modelyard.contract.ids import new_operation_id
from modelyard.store.content.files import StoredFile, StoredFiles

BUCKET = "inputs"
KEPT_S = 86_400.0
"""Seconds that an input is kept which no operation names."""


class Inputs:
    """The uploaded inputs. Every method raises `StoreUnavailableError`."""

    def __init__(self, files: StoredFiles) -> None:
        self._files = files

    async def put(
        self, content_type: str, tenant: str, content: AsyncIterator[bytes]
    ) -> StoredFile:
        """Store an input as it comes, and return it.

        What `content` raises goes on; what was stored until then is removed like any other input
        that nobody names.
        """
        file_id = new_operation_id()
        await self._files.begin(file_id, content_type, tenant=tenant)
        digest, length, number = hashlib.sha256(), 0, 0
        held = bytearray()
        async for part in content:
            digest.update(part)
            length += len(part)
            held += part
            while len(held) >= PIECE_BYTES:
                await self._files.write(file_id, number, bytes(held[:PIECE_BYTES]))
                del held[:PIECE_BYTES]
                number += 1
        if held:
            await self._files.write(file_id, number, bytes(held))
        await self._files.finish(file_id, length, digest.hexdigest())
        return StoredFile(
            file_id=file_id,
            length=length,
            content_type=content_type,
            sha256=digest.hexdigest(),
            tenant=tenant,
        )

    async def find(self, input_id: str, *, tenant: str) -> StoredFile | None:
        """Return what is known of an input of a tenant that is there whole."""
        found = await self._files.find(input_id)
        whole = found is not None and found.complete and found.tenant == tenant
        return found if whole else None

    async def keep(self, input_ids: AbstractSet[str], *, tenant: str) -> set[str]:
        """Keep inputs for another `KEPT_S`; return those of them that are not there."""
        return await self._files.touch(input_ids, tenant=tenant)

    async def piece(self, input_id: str, number: int) -> bytes | None:
        """Return one piece of an input; None if there is none."""
        return await self._files.piece(input_id, number)
