"""Takes inputs that clients upload: streamed into MongoDB, a piece at a time."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import Request

from gateway.access.client_places import ClientPlaces, address_group
from gateway.problems import SlowRequestError
from gateway.submission.bodies import announced_bytes, body_too_large
from modelyard.contract.access.scopes import Principal
from modelyard.contract.answers import InputView
from modelyard.contract.content.media_types import UNKNOWN_TYPE, media_type_of
from modelyard.contract.content.transfers import MAX_CONTENT_BYTES
from modelyard.contract.errors import ErrorCode, InvalidRequestError, ModelyardError
from modelyard.store.content.files import StoredFile
from modelyard.store.content.inputs import Inputs

MOST_AT_ONCE = 32
"""Uploads that one gateway takes at the same time; any further one is asked to come again. Each
holds up to 255 KiB."""
MOST_OF_CLIENT = 8
"""Of these, those of one API key, or of one address if the gateway asks for no key."""
LEAST_BYTES_PER_S = 32 << 10
"""The least average rate of an upload: 64 MiB take 35 minutes at most."""
BEHIND_S = 30.0
"""How far an upload may fall behind that rate; also the longest pause."""


class Uploads:
    """The uploads of one gateway."""

    def __init__(self, inputs: Inputs, *, max_bytes: int = MAX_CONTENT_BYTES) -> None:
        self._inputs = inputs
        self.max_bytes = max_bytes
        self.places = ClientPlaces(MOST_AT_ONCE, MOST_OF_CLIENT)

    async def take(self, request: Request, caller: Principal) -> InputView:
        """Store the body of a request as an input.

        Raises `InvalidRequestError` with `body_too_large`, `unsupported_media_type` or
        `invalid_request`, `SlowRequestError`, `StoreUnavailableError`, and `unavailable` if too
        many are being uploaded now, by all or by this client.
        """
        content_type = _content_type(request)
        if announced_bytes(request) > self.max_bytes:
            raise body_too_large(self.max_bytes)
        client = caller.key_id or address_group(request.client.host if request.client else None)
        if self.places.at_limit(client):
            raise _too_many(f"You are uploading {self.places.of_client} inputs already")
        if self.places.full:
            raise _too_many("Too many inputs are being uploaded")
        with self.places.hold(client):
            stored = await self._inputs.put(content_type, caller.tenant, self._bounded(request))
        return input_view(stored)

    async def _bounded(self, request: Request) -> AsyncIterator[bytes]:
        received = 0
        async for part in _in_time(request.stream()):
            received += len(part)
            if received > self.max_bytes:
                raise body_too_large(self.max_bytes)
            yield part
        if not received:
            raise InvalidRequestError(ErrorCode.INVALID_REQUEST, "The input is empty.")


async def _in_time(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the parts; raise `SlowRequestError` once they come more slowly than they may.

    Only what this waits for the client counts: the store may be slow too.
    """
    loop = asyncio.get_running_loop()
    left_s = BEHIND_S
    while True:
        began = loop.time()
        try:
            async with asyncio.timeout(left_s):
                part = await anext(parts, None)
        except TimeoutError as error:
            raise SlowRequestError(
                f"The input came more slowly than {LEAST_BYTES_PER_S >> 10} KiB a second, and was "
                f"{BEHIND_S:g} s behind that."
            ) from error
        if part is None:
            return
        waited_s = loop.time() - began
        left_s = min(BEHIND_S, left_s - waited_s + len(part) / LEAST_BYTES_PER_S)
        yield part


def _too_many(what: str) -> ModelyardError:
    return ModelyardError(ErrorCode.UNAVAILABLE, f"{what}; try again in a moment.")


def input_view(stored: StoredFile) -> InputView:
    """Return an input as clients see it."""
    return InputView(
        input_id=stored.file_id,
        content_type=stored.content_type,
        size=stored.length,
        sha256=stored.sha256 or "",
    )


def _content_type(request: Request) -> str:
    headers = request.headers.getlist("Content-Type")
    content_type = media_type_of(headers[0]) if len(headers) == 1 else UNKNOWN_TYPE
    given = headers[0].strip() if len(headers) == 1 else ""
    if content_type == UNKNOWN_TYPE and given.lower() != UNKNOWN_TYPE:
        message = f"Content-Type has to be one media type, such as image/png or {UNKNOWN_TYPE}."
        raise InvalidRequestError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, message)
    if not given:
        message = "Content-Type has to say what the input is."
        raise InvalidRequestError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, message)
    if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        message = "The input must be sent without a content encoding."
        raise InvalidRequestError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, message)
    return content_type
