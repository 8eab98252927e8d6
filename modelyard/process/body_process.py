"""Large bodies are read in a process of their own, so that no body holds up the event loop.

A thread would not do: the parser holds Python's lock for as long as it takes. What a service needs
of a body is text (the input as JSON, a hash) and a few short fields, and that is all that comes
back; the objects that the body was parsed into stay in the other process.
"""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import structlog

from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.process.body_frames import END, FAILED, PREFIX, frame

log = structlog.get_logger(__name__)

LARGE_BODY_BYTES = 32 << 10
"""From here on a body is read in the process; a smaller one takes a few milliseconds at most, and
the way there and back takes one."""
WITHIN_S = 30.0
"""For one body: several times what the worst one takes."""
CLOSE_S = 2.0
_TRIES = 2
_PARTS_AT_A_STRETCH = 16
_FAILED = json.dumps({FAILED: ""}).encode()[:-2]
_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
"""It needs nothing else of the environment, which holds the service's passwords. `PYTHON*` too."""


class BodyProcessError(ModelyardError):
    """A body could not be read, for a reason that lies in our process and not in the body."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.UNAVAILABLE, message)


class BodyProcessUnavailableError(BodyProcessError):
    """The process could not be started; that says nothing of the body."""


class BodyProcessEndedError(BodyProcessError):
    """The process ended over the body, or took too long.

    Mostly the machine is out of memory or overloaded; but it may be because of the body.
    """


class BodyProcess:
    """One process that reads bodies, one after the other. It is started by the first one."""

    def __init__(self, module: str) -> None:
        """Name the module that `python -m` runs; it calls `modelyard.process.body_child.serve`."""
        self._module = module
        self._turn = asyncio.Lock()
        self._process: Process | None = None

    async def ask(
        self, task: str, given: Mapping[str, object], body: bytes
    ) -> list[tuple[bytes, bytes]]:
        """Return what the task makes of a body: JSON headers, each with bytes that belong to it.

        Raises `BodyProcessUnavailableError` if there is no process, `BodyProcessEndedError` if it
        ended over the body twice or took too long, and `BodyProcessError` if the task failed.
        """
        header = json.dumps({"task": task, "given": given}).encode()
        async with self._turn:
            for tries_left in reversed(range(_TRIES)):
                try:
                    process = await self._started()
                    async with asyncio.timeout(WITHIN_S):
                        return await _exchange(process, header, body)
                except TimeoutError as error:  # which is an OSError too
                    log.warning("body_process.too_slow", module=self._module)
                    await self._kill()
                    message = f"The body was not read within {WITHIN_S:.0f} s."
                    raise BodyProcessEndedError(message) from error
                except (EOFError, OSError) as error:
                    log.warning("body_process.ended", module=self._module, error=repr(error))
                    await self._kill()
                    if not tries_left:
                        message = "The process that reads bodies ended over this one."
                        raise BodyProcessEndedError(message) from error
                except asyncio.CancelledError:
                    # Half an answer may be on its way, and the next one must not get it.
                    await self._kill()
                    raise
        raise AssertionError

    async def close(self) -> None:
        """End the process, if there is one."""
        async with self._turn:
            process, self._process = self._process, None
            if process is None or process.stdin is None:
                return
            process.stdin.close()
            try:
                async with asyncio.timeout(CLOSE_S):
                    await process.wait()
            except TimeoutError:
                process.kill()

    async def _started(self) -> Process:
        """Return the process once it reads; raises `BodyProcessUnavailableError`."""
        if self._process is not None:
            return self._process
        try:
            async with asyncio.timeout(WITHIN_S):
                self._process = await self._start()
                if self._process.stdout is None:
                    raise AssertionError
                # One that ends before it says so has not ended over the body.
                await self._process.stdout.readexactly(len(END))
        except (EOFError, OSError) as error:  # a `TimeoutError` too
            log.warning("body_process.not_started", module=self._module, error=repr(error))
            await self._kill()
            message = f"The process that reads large bodies can't be started: {error!r}."
            raise BodyProcessUnavailableError(message) from error
        return self._process

    async def _start(self) -> Process:
        kept = {
            name: value
            for name, value in os.environ.items()
            if name in _KEPT_ENVIRONMENT or name.startswith("PYTHON")
        }
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", self._module, stdin=PIPE, stdout=PIPE, env=kept, limit=1 << 20
        )

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _exchange(process: Process, header: bytes, body: bytes) -> list[tuple[bytes, bytes]]:
    to, answers = process.stdin, process.stdout
    if to is None or answers is None:
        raise AssertionError
    to.writelines(frame(header, body))
    await to.drain()
    parts: list[tuple[bytes, bytes]] = []
    while True:
        header_size, blob_size = PREFIX.unpack(await answers.readexactly(PREFIX.size))
        if not header_size:
            break
        parts.append((await answers.readexactly(header_size), await answers.readexactly(blob_size)))
        if len(parts) % _PARTS_AT_A_STRETCH == 0:
            await asyncio.sleep(0)  # what is there already is read without a pause
    if parts and parts[-1][0].startswith(_FAILED):
        said: dict[str, Any] = json.loads(parts[-1][0])
        raise BodyProcessError(f"The body could not be read: {said[FAILED]}.")
    return parts
