"""Parses large bodies in a second process, so that no body blocks the event loop.

A thread would not help, because the parser holds Python's global lock while it works. The service
needs only texts of a body (the input as JSON, a hash) and a few short fields. Only those come back;
the parsed objects stay in the second process.
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
"""Bodies of this size or more are parsed in the second process. A smaller one takes a few
milliseconds at most; sending it there and back takes one."""
WITHIN_S = 30.0
"""Deadline for one body: several times as long as the worst body takes."""
CLOSE_S = 2.0
_TRIES = 2
_PARTS_BEFORE_YIELD = 16
_FAILED = json.dumps({FAILED: ""}).encode()[:-2]
_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
"""Variables that the second process gets, and `PYTHON*`. Others may contain passwords."""


class BodyProcessError(ModelyardError):
    """A body could not be parsed; the reason is the process and not the body."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.UNAVAILABLE, message)


class BodyProcessUnavailableError(BodyProcessError):
    """The process could not be started, which says nothing about the body."""


class BodyProcessEndedError(BodyProcessError):
    """The process ended while it parsed the body, or took too long.

    Usually the machine is out of memory or overloaded, but the body may be the cause.
    """


class BodyProcess:
    """One process that parses bodies, one after the other. The first body starts it."""

    def __init__(self, module: str) -> None:
        """Name the module for `python -m`; it calls `modelyard.process.body_child.serve`."""
        self._module = module
        self._turn = asyncio.Lock()
        self._process: Process | None = None

    async def ask(
        self, task: str, given: Mapping[str, object], body: bytes
    ) -> list[tuple[bytes, bytes]]:
        """Run a task on a body; return its parts, each a JSON header and raw bytes.

        Raises `BodyProcessUnavailableError` if the process can't be started,
        `BodyProcessEndedError` if it ended twice while it parsed the body or took too long, and
        `BodyProcessError` if the task failed.
        """
        header = json.dumps({"task": task, "given": given}).encode()
        async with self._turn:
            for tries_left in reversed(range(_TRIES)):
                try:
                    process = await self._started()
                    async with asyncio.timeout(WITHIN_S):
                        return await _exchange(process, header, body)
                except TimeoutError as error:  # before OSError, of which it is a subclass
                    log.warning("body_process.too_slow", module=self._module)
                    await self._kill()
                    message = f"The body was not read within {WITHIN_S:.0f} s."
                    raise BodyProcessEndedError(message) from error
                except (EOFError, OSError) as error:
                    log.warning("body_process.ended", module=self._module, error=repr(error))
                    await self._kill()
                    if not tries_left:
                        message = "The process that parses bodies ended while it parsed this one."
                        raise BodyProcessEndedError(message) from error
                except asyncio.CancelledError:
                    # Half an answer may be in the pipe, and the next caller must not read it.
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
        """Return the process once it is ready; raises `BodyProcessUnavailableError`."""
        if self._process is not None:
            return self._process
        try:
            async with asyncio.timeout(WITHIN_S):
                self._process = await self._start()
                if self._process.stdout is None:
                    raise AssertionError
                # A process that ends before this has not seen the body.
                await self._process.stdout.readexactly(len(END))
        except (EOFError, OSError) as error:  # `TimeoutError` included
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
        if len(parts) % _PARTS_BEFORE_YIELD == 0:
            await asyncio.sleep(0)  # reading buffered data never yields to other tasks
    if parts and parts[-1][0].startswith(_FAILED):
        failure: dict[str, Any] = json.loads(parts[-1][0])
        raise BodyProcessError(f"The body could not be read: {failure[FAILED]}.")
    return parts
