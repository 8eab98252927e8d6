"""Takes inputs that clients upload: streamed into MongoDB, a piece at a time."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import Request

from gateway.problems import SlowRequestError
from gateway.submission.bodies import announced_bytes, body_too_large
from modelyard.contract.answers import InputView
from modelyard.contract.content.media_types import UNKNOWN_TYPE, media_type_of
from modelyard.contract.content.transfers import MAX_CONTENT_BYTES
from modelyard.contract.errors import ErrorCode, InvalidRequestError, ModelyardError
from modelyard.store.content.files import StoredFile
from modelyard.store.content.inputs import Inputs

MOST_AT_ONCE = 8
"""Uploads that one gateway takes at the same time; any further one is asked to come again. Each
holds up to 255 KiB."""
STALLED_S = 30.0
"""Seconds that a client may send nothing."""
UPLOAD_S = 600.0
"""Seconds that one upload may take."""


class Uploads:
    """The uploads of one gateway."""

    def __init__(self, inputs: Inputs, *, max_bytes: int = MAX_CONTENT_BYTES) -> None:
        self._inputs = inputs
        self.max_bytes = max_bytes
        self._taken = 0

    async def take(self, request: Request, *, tenant: str) -> InputView:
        """Store the body of a request as an input.

        Raises `InvalidRequestError` with `body_too_large`, `unsupported_media_type` or
        `invalid_request`, `SlowRequestError`, `StoreUnavailableError`, and `unavailable` if too
        many others upload now.
        """
        content_type = _content_type(request)
        if announced_bytes(request) > self.max_bytes:
            raise body_too_large(self.max_bytes)
        if self._taken >= MOST_AT_ONCE:
            raise ModelyardError(
                ErrorCode.UNAVAILABLE, "Too many inputs are being uploaded; try again in a moment."
            )
        self._taken += 1
        try:
            async with asyncio.timeout(UPLOAD_S):
                stored = await self._inputs.put(content_type, tenant, self._bounded(request))
        except TimeoutError as error:
            raise SlowRequestError("The input did not arrive in time.") from error
        finally:
            self._taken -= 1
        return input_view(stored)

    async def _bounded(self, request: Request) -> AsyncIterator[bytes]:
        received = 0
        parts = aiter(request.stream())
        while True:
            async with asyncio.timeout(STALLED_S):
                part = await anext(parts, None)
            if part is None:
                break
            received += len(part)
            if received > self.max_bytes:
                raise body_too_large(self.max_bytes)
            yield part
        if not received:
            raise InvalidRequestError(ErrorCode.INVALID_REQUEST, "The input is empty.")


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
