"""Reading bodies of requests: small ones here, large ones in the body process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request

from gateway.submission.acceptor import PendingRequest
from gateway.submission.bodies import receive
from gateway.submission.body_budget import BodyBudget
from gateway.submission.request_transfer import unpack
from gateway.submission.requests import RefusedRequest, read_batch, read_one
from gateway.submission.retries import request_again
from modelyard.contract.json_bounds import CATALOG_LIMITS
from modelyard.contract.messages import MAX_BATCH_BYTES, MAX_REQUEST_BYTES
from modelyard.contract.strict_json import JsonValue, parse_json
from modelyard.process.body_child import Part
from modelyard.process.body_process import LARGE_BODY_BYTES, BodyProcess
from modelyard.store.records import OperationRecord

MODULE = "gateway.body_child"
MAX_CATALOG_BYTES = 256 << 10
"""A model or a dataset. It is read where it comes in: it may hold few values, so it is fast."""
_AT_A_STRETCH = 32
"""Requests that are unpacked before others have their turn."""


class RequestReader:
    """Reads the bodies of one gateway, within one budget of memory.

    What is read stays in the budget for as long as the context lasts: until it is durable.
    Each raises `InvalidRequestError` for what is wrong with a body, and `BudgetSpentError`.
    """

    def __init__(
        self,
        *,
        max_request_bytes: int = MAX_REQUEST_BYTES,
        max_batch_bytes: int = MAX_BATCH_BYTES,
    ) -> None:
        self.max_request_bytes = max_request_bytes
        self.max_batch_bytes = max_batch_bytes
        self.budget = BodyBudget()
        self._process = BodyProcess(MODULE)
        self._durable_turn = asyncio.Lock()
        """Large bodies go into the stores one after the other, so that none of them waits there for
        the others, and is taken for a store that does not answer."""

    async def close(self) -> None:
        """End the process."""
        await self._process.close()

    @asynccontextmanager
    async def one(
        self, request: Request, key: str | None, *, tenant: str
    ) -> AsyncIterator[PendingRequest]:
        """Read a body that is one request."""
        most = self.max_request_bytes
        async with receive(request, self.budget, max_bytes=most) as body:
            if len(body) < LARGE_BODY_BYTES:
                yield read_one(body, key=key, tenant=tenant, max_bytes=most)
                return
            given = {"key": key, "tenant": tenant, "max_bytes": most}
            [part] = await self._process.ask("one", given, body)
            async with self._durable_turn:
                yield _only(part)

    @asynccontextmanager
    async def batch(
        self, request: Request, key: str | None, *, tenant: str
    ) -> AsyncIterator[list[PendingRequest | RefusedRequest]]:
        """Read a body that is a batch."""
        most = self.max_batch_bytes
        limits = {"max_bytes": most, "max_request_bytes": self.max_request_bytes}
        async with receive(request, self.budget, max_bytes=most) as body:
            if len(body) < LARGE_BODY_BYTES:
                yield read_batch(body, key=key, tenant=tenant, **limits)
                return
            given = {"key": key, "tenant": tenant, **limits}
            parts = await self._process.ask("batch", given, body)
            read: list[PendingRequest | RefusedRequest] = []
            for start in range(0, len(parts), _AT_A_STRETCH):
                read += map(unpack, parts[start : start + _AT_A_STRETCH])
                await asyncio.sleep(0)
            async with self._durable_turn:
                yield read

    async def again(
        self, record: OperationRecord, key: str | None, *, tenant: str
    ) -> PendingRequest:
        """Return the request of an operation, to be made anew; `record` is read with its input.

        Raises `ModelyardError` with `not_retryable`.
        """
        body = (record.input_json or "").encode()
        if len(body) < LARGE_BODY_BYTES:
            return PendingRequest.of(
                request_again(record), key, retry_of=record.operation_id, tenant=tenant
            )
        fields = record.model_dump(mode="json", exclude={"input_json"}, by_alias=True)
        given = {"key": key, "tenant": tenant, "record": fields}
        [part] = await self._process.ask("again", given, body)
        return _only(part)

    async def entry(self, request: Request) -> JsonValue:
        """Return the JSON of a body that is an entry of the catalog, or as small as one."""
        most = min(self.max_request_bytes, MAX_CATALOG_BYTES)
        async with receive(request, self.budget, max_bytes=most) as body:
            return parse_json(body, max_bytes=most, limits=CATALOG_LIMITS)


def _only(part: Part) -> PendingRequest:
    pending = unpack(part)
    if isinstance(pending, RefusedRequest):
        raise pending.error
    return pending
