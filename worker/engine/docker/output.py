"""Reads a container's exit, logs and files: long streams in bounded memory."""

import asyncio
import base64
import io
import tarfile
from collections.abc import AsyncIterator

import aiodocker
import aiohttp
from aiodocker.exceptions import DockerError
from pydantic import BaseModel, ConfigDict, Field

from modelyard.contract.catalog.mounts import normal
from worker.engine.docker.calls import (
    CALL_S,
    NOT_FOUND,
    deadline,
    is_refusal,
    one_container,
    streamed,
)
from worker.engine.protocol import (
    FileTooLargeError,
    FileUnreadableError,
    StartRefusedError,
    checked_ref,
)

WAIT_SLICE_S = 30.0
"""Seconds after which a wait is sent again, because a broken stream may show no error."""
WHOLE_LOG_S = 120.0
_TAR_BYTES = 64 << 10
"""Bytes of tar headers and padding around one file, generously estimated."""
FULL_LOG_BYTES = 19_000_000
"""A little less than two whole log files of the three that the engine keeps.

Once the log is longer the third file has begun, and the engine drops the first one next.
"""
_ENTRY_BYTES = 80
"""Least number of bytes that the engine's log file adds to each entry."""
_UNREADABLE = (
    "not a directory",
    "too many levels of symbolic links",
    "too many links",
    "file name too long",
    "permission denied",
)
"""Go's texts for the errors of the operating system that concern a path."""
_STAT = "X-Docker-Container-Path-Stat"
_FRAME_HEAD = 8
_FRAME_BYTES = 1 << 20
"""Most bytes of a log entry; real ones are far smaller: the engine splits lines at 16 KiB."""


class _PathStat(BaseModel):
    """Facts of a path: Base64 JSON in a header of `GET /containers/{id}/archive`."""

    model_config = ConfigDict(extra="ignore")

    link_target: str = Field(default="", alias="linkTarget")


class DockerOutput:
    """Reads from containers; its client's connections may be in use for long."""

    def __init__(self, client: aiodocker.Docker) -> None:
        self._client = client

    async def wait_a_while(self, container_id: str) -> None:
        """Return when the container stops running, and at the latest after `WAIT_SLICE_S`."""
        limit = asyncio.timeout(WAIT_SLICE_S)
        try:
            async with (
                one_container(self._client, container_id, "wait for", WAIT_SLICE_S * 2) as it,
                limit,
            ):
                await it.wait(timeout=None)
        except TimeoutError:
            if not limit.expired():
                raise

    async def log_tail(self, container_id: str, *, lines: int) -> str:
        params = {"stdout": True, "stderr": True, "tail": lines}
        pieces = []
        async with (
            one_container(self._client, container_id, "read the log of", CALL_S) as it,
            streamed(self._client, f"containers/{it.id}/logs", params=params) as response,
        ):
            async for piece in _entries(response.content):
                pieces.append(piece)  # noqa: PERF401 - read inside, joined outside
        return b"".join(pieces).decode(errors="replace")

    async def stdout_tail(self, container_id: str, *, max_bytes: int) -> bytes:
        # Docker's `tail` counts the lines of both streams. So read the whole log, which max-size
        # limits, and keep its end.
        params = {"stdout": True, "stderr": False}
        kept: list[bytes] = []
        size = 0
        async with (
            one_container(self._client, container_id, "read the log of", WHOLE_LOG_S) as it,
            streamed(self._client, f"containers/{it.id}/logs", params=params) as response,
        ):
            async for piece in _entries(response.content):
                kept.append(piece)
                size += len(piece)
                while size - len(kept[0]) >= max_bytes:
                    size -= len(kept.pop(0))
        return b"".join(kept)

    async def log_is_full(self, container_id: str) -> bool:
        params = {"stdout": True, "stderr": True}
        size = 0
        async with (
            one_container(self._client, container_id, "read the log of", WHOLE_LOG_S) as it,
            streamed(self._client, f"containers/{it.id}/logs", params=params) as response,
        ):
            async for piece in _entries(response.content):
                size += len(piece) + _ENTRY_BYTES
        return size >= FULL_LOG_BYTES

    async def link_at(self, container_id: str, path: str) -> str | None:
        place = f"containers/{checked_ref(container_id)}/archive"
        whole = normal(path)
        for part in (*reversed(whole.parents), whole)[1:]:
            async with deadline("inspect a path", CALL_S):
                try:
                    # Only the header is needed, but aiodocker can't read the errors of a HEAD.
                    asked = {"path": str(part)}
                    async with streamed(self._client, place, params=asked) as response:
                        stat = response.headers.get(_STAT, "")
                except DockerError as error:
                    if error.status == NOT_FOUND:
                        return None  # the engine will create this folder and all below it
                    if any(it in (error.message or "") for it in _UNREADABLE):
                        # For this call the engine mounts the container's mounts, as for a start.
                        raise StartRefusedError(f"Docker: {error.message}") from error
                    raise
                if _PathStat.model_validate_json(base64.b64decode(stat)).link_target:
                    return str(part)
        return None

    async def read_file(self, container_id: str, path: str, *, max_bytes: int) -> bytes:
        archive = bytearray()
        place = f"containers/{checked_ref(container_id)}/archive"
        async with deadline("read a file", CALL_S):
            try:
                async with streamed(self._client, place, params={"path": path}) as response:
                    async for chunk in response.content.iter_chunked(_TAR_BYTES):
                        archive += chunk
                        if len(archive) > max_bytes + _TAR_BYTES:
                            raise FileTooLargeError(f"{path} is larger than {max_bytes} bytes.")
            except DockerError as error:
                if error.status == NOT_FOUND:
                    raise FileUnreadableError(f"{path} does not exist.") from error
                # The path itself is at fault; the engine may report that with 500 too.
                if is_refusal(error) or any(it in (error.message or "") for it in _UNREADABLE):
                    raise FileUnreadableError(f"{path}: {error.message}") from error
                raise
        return _only_file(bytes(archive), path, max_bytes)


async def _entries(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield the log's entries in order; raises `ValueError` if the stream has another form.

    Source: Docker Engine API 1.41, ContainerAttach, "Stream format": a frame is one byte that names
    the stream, three zero bytes, the size as a big-endian uint32, and the entry.
    """
    while True:
        try:
            head = await stream.readexactly(_FRAME_HEAD)
            size = int.from_bytes(head[4:], "big")
            if size > _FRAME_BYTES:
                raise ValueError("a log entry of an impossible size")
            yield await stream.readexactly(size)
        except asyncio.IncompleteReadError as end:
            if end.partial:
                raise ValueError("a log that was cut off") from end
            return


def _only_file(archive: bytes, path: str, max_bytes: int) -> bytes:
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            member = tar.next()
            # A link is not followed: it may lead to files that the model did not write.
            file = tar.extractfile(member) if member is not None and member.isreg() else None
            if member is None or file is None:
                raise FileUnreadableError(f"{path} is not a regular file.")
            if member.size > max_bytes:
                raise FileTooLargeError(f"{path} has {member.size} bytes, over {max_bytes}.")
            return file.read()
    except tarfile.TarError as error:
        raise FileUnreadableError(f"{path} could not be read: {error}") from error
