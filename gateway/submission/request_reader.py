"""Reads request bodies: small ones here, large ones in the body process.

A large body would block the event loop while it is parsed.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import Request

from gateway.submission.acceptor import PendingRequest
from gateway.submission.bodies import receive
from gateway.submission.body_budget import BodyBudget
from gateway.submission.request_transfer import unpack
from gateway.submission.requests import RefusedRequest, read_batch, read_inference, read_one
from gateway.submission.retries import request_again
from modelyard.contract.json_bounds import CATALOG_LIMITS
from modelyard.contract.messages import MAX_BATCH_BYTES, MAX_REQUEST_BYTES
from modelyard.contract.strict_json import JsonValue, parse_json
from modelyard.process.body_child import Part
from modelyard.process.body_process import LARGE_BODY_BYTES, BodyProcess
from modelyard.store.queries.serving_jobs import Copies
from modelyard.store.records import OperationRecord

MODULE = "gateway.body_child"
MAX_CATALOG_BYTES = 256 << 10
"""Most bytes of a model or a dataset. It holds few values, so it is parsed in this process."""
_UNPACKED_AT_ONCE = 32
"""Requests that are unpacked before the event loop may run other tasks."""

InferenceOn = Callable[[str], Awaitable[PendingRequest]]
"""Returns an inference on the job of this id."""


class RequestReader:
    """Reads the request bodies of one gateway, within one memory budget.

    A body counts against the budget while its context lasts, which is until it is durable. Each
    method raises `InvalidRequestError` for an invalid body, and `BudgetSpentError`.
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
        """Large bodies are made durable one after the other. Otherwise they would delay each other
        so much that a store looks as if it did not answer."""

    async def close(self) -> None:
        """End the body process."""
        await self._process.close()

    @asynccontextmanager
    async def one(
        self, request: Request, key: str | None, *, tenant: str
    ) -> AsyncIterator[PendingRequest]:
        """Yield the one request in a body."""
        most = self.max_request_bytes
        async with receive(request, self.budget, max_bytes=most) as body:
            if len(body) < LARGE_BODY_BYTES:
                yield read_one(body, key=key, tenant=tenant, max_bytes=most)
                return
            arguments = {"key": key, "tenant": tenant, "max_bytes": most}
            [part] = await self._process.ask("one", arguments, body)
            async with self._durable_turn:
                yield _only(part)

    @asynccontextmanager
    async def inference(
        self, request: Request, copies: Copies, key: str | None, *, tenant: str
    ) -> AsyncIterator[InferenceOn]:
        """Yield what returns the inference in a body on a job that was chosen.

        It may be called again with another job: then an earlier request with its key went there.
        """
        most = self.max_request_bytes
        async with receive(request, self.budget, max_bytes=most) as body, AsyncExitStack() as turn:
            given = {"key": key, "tenant": tenant, "max_bytes": most}

            async def read_small(job_id: str) -> PendingRequest:
                return read_inference(body, copies, job_id, key=key, tenant=tenant, max_bytes=most)

            async def read_large(job_id: str) -> PendingRequest:
                await turn.aclose()
                arguments = {"copies": copies.criteria, "job_id": job_id, **given}
                [part] = await self._process.ask("inference", arguments, body)
                await turn.enter_async_context(self._durable_turn)
                return _only(part)

            yield read_small if len(body) < LARGE_BODY_BYTES else read_large

    @asynccontextmanager
    async def batch(
        self, request: Request, key: str | None, *, tenant: str
    ) -> AsyncIterator[list[PendingRequest | RefusedRequest]]:
        """Yield the requests in the body of a batch."""
        most = self.max_batch_bytes
        limits = {"max_bytes": most, "max_request_bytes": self.max_request_bytes}
        async with receive(request, self.budget, max_bytes=most) as body:
            if len(body) < LARGE_BODY_BYTES:
                yield read_batch(body, key=key, tenant=tenant, **limits)
                return
            arguments = {"key": key, "tenant": tenant, **limits}
            parts = await self._process.ask("batch", arguments, body)
            read: list[PendingRequest | RefusedRequest] = []
            for start in range(0, len(parts), _UNPACKED_AT_ONCE):
                read += map(unpack, parts[start : start + _UNPACKED_AT_ONCE])
                await asyncio.sleep(0)
            async with self._durable_turn:
                yield read

    async def again(
        self, record: OperationRecord, key: str | None, *, tenant: str
    ) -> PendingRequest:
        """Return the request of an operation as a new request; `record` includes its input.

        Raises `ModelyardError` with `not_retryable`.
        """
        body = (record.input_json or "").encode()
        if len(body) < LARGE_BODY_BYTES:
            return PendingRequest.of(
                request_again(record), key, retry_of=record.operation_id, tenant=tenant
            )
        fields = record.model_dump(mode="json", exclude={"input_json"}, by_alias=True)
        arguments = {"key": key, "tenant": tenant, "record": fields}
        [part] = await self._process.ask("again", arguments, body)
        return _only(part)

    async def entry(self, request: Request) -> JsonValue:
        """Return the JSON of a body that is a catalog entry or similarly small."""
        most = min(self.max_request_bytes, MAX_CATALOG_BYTES)
        async with receive(request, self.budget, max_bytes=most) as body:
            return parse_json(body, max_bytes=most, limits=CATALOG_LIMITS)


def _only(part: Part) -> PendingRequest:
    pending = unpack(part)
    if isinstance(pending, RefusedRequest):
        raise pending.error
    return pending
