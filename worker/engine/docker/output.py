"""What a container leaves behind: its exit, its logs, its files. Long streams, bounded memory."""

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
"""A wait is asked anew this often, so that one whose stream died silently is noticed."""
WHOLE_LOG_S = 120.0
_TAR_BYTES = 64 << 10
"""Tar's own blocks and headers around one file, with room."""
FULL_LOG_BYTES = 19_000_000
"""Less than two whole files of three: once a third is begun the first one is dropped next."""
_ENTRY_BYTES = 80
"""What the engine's log file has around each entry, at the least."""
_UNREADABLE = (
    "not a directory",
    "too many levels of symbolic links",
    "too many links",
    "file name too long",
    "permission denied",
)
"""What the operating system finds wrong with a path, in the words of Go."""
_STAT = "X-Docker-Container-Path-Stat"
_FRAME_HEAD = 8
_FRAME_BYTES = 1 << 20
"""Far more than a log entry has: the engine cuts longer lines up into entries of 16 KiB."""


class _PathStat(BaseModel):
    """What is at a path, as Base64 JSON in a header of `GET /containers/{id}/archive`."""

    model_config = ConfigDict(extra="ignore")

    link_target: str = Field(default="", alias="linkTarget")


class DockerOutput:
    """Reads through a client of its own, whose connections may be held for long."""

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
        # `tail` would count lines of both streams, so all of the log is read (max-size bounds
        # it) and its end kept.
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
            async with deadline("look at a path", CALL_S):
                try:
                    # Not HEAD, though only the header counts: aiodocker can't read its refusals.
                    asked = {"path": str(part)}
                    async with streamed(self._client, place, params=asked) as response:
                        stat = response.headers.get(_STAT, "")
                except DockerError as error:
                    if error.status == NOT_FOUND:
                        return None  # the engine will make it, and all below it
                    if any(it in (error.message or "") for it in _UNREADABLE):
                        # To look, the engine mounts what the container has, as it would to start.
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
                    raise FileUnreadableError(f"{path} is not there.") from error
                # The path itself is at fault: the engine says that with 500 as well.
                if is_refusal(error) or any(it in (error.message or "") for it in _UNREADABLE):
                    raise FileUnreadableError(f"{path}: {error.message}") from error
                raise
        return _only_file(bytes(archive), path, max_bytes)


async def _entries(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield the log's entries as they were written; raises `ValueError` for another form.

    Source: Docker Engine API 1.41, ContainerAttach, "Stream format": a frame is one byte for the
    stream, three of zero, the size as a big-endian uint32, and the entry.
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
            # A link is not followed: it may point out of what the model wrote.
            file = tar.extractfile(member) if member is not None and member.isreg() else None
            if member is None or file is None:
                raise FileUnreadableError(f"{path} is not a regular file.")
            if member.size > max_bytes:
                raise FileTooLargeError(f"{path} has {member.size} bytes, over {max_bytes}.")
            return file.read()
    except tarfile.TarError as error:
        raise FileUnreadableError(f"{path} could not be read: {error}") from error
