"""What a container leaves behind: its exit, its logs, its files. Long streams, bounded memory."""

import asyncio
import io
import tarfile

import aiodocker
from aiodocker.exceptions import DockerError

from worker.docker_runtime_calls import CALL_S, NOT_FOUND, deadline, one_container
from worker.runtime import (
    EngineUnavailableError,
    FileTooLargeError,
    FileUnreadableError,
    RuntimeFaultError,
    checked_ref,
)

WAIT_SLICE_S = 30.0
"""A wait is asked anew this often, so that one whose stream died silently is noticed."""
WHOLE_LOG_S = 120.0
_ENTRY_BYTES = 16 << 10
"""The engine cuts longer lines up into entries of this size."""
_TAR_BYTES = 64 << 10
"""Tar's own blocks and headers around one file, with room."""


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
        async with one_container(self._client, container_id, "read the log of", CALL_S) as it:
            pieces: list[str] = await it.log(stdout=True, stderr=True, tail=lines)
        return "".join(pieces)

    async def stdout_tail(self, container_id: str, *, max_bytes: int) -> str:
        kept: list[bytes] = []
        size = 0
        async with one_container(self._client, container_id, "read the log of", WHOLE_LOG_S) as it:
            # `tail` would count lines of both streams, so all of the log is read (max-size bounds
            # it) and its end kept. `follow` streams it, and ends because the container has exited.
            async for piece in it.log(stdout=True, stderr=False, follow=True):
                kept.append(piece.encode())
                size += len(kept[-1])
                while size - len(kept[0]) > max_bytes + _ENTRY_BYTES:
                    size -= len(kept.pop(0))
        return b"".join(kept).decode(errors="replace")

    async def read_file(self, container_id: str, path: str, *, max_bytes: int) -> bytes:
        archive = bytearray()
        # aiodocker's get_archive() reads without a bound; the private call is what it is made of.
        query = self._client._query(  # noqa: SLF001
            f"containers/{checked_ref(container_id)}/archive", params={"path": path}
        )
        async with deadline("read a file", CALL_S):
            try:
                async with query as response:
                    async for chunk in response.content.iter_chunked(_TAR_BYTES):
                        archive += chunk
                        if len(archive) > max_bytes + _TAR_BYTES:
                            response.close()
                            raise FileTooLargeError(f"{path} is larger than {max_bytes} bytes.")
            except DockerError as error:
                raise _file_refusal(path, error) from error
        return _only_file(bytes(archive), path, max_bytes)


def _file_refusal(path: str, error: DockerError) -> RuntimeFaultError:
    if error.status == NOT_FOUND:
        return FileUnreadableError(f"{path} is not there.")
    return EngineUnavailableError(f"Docker refused to read {path}: {error.message}")


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
