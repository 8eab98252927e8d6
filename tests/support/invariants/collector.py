"""The witness of I2: containers of the probe image tell it when they run, over TCP.

A container reaches the machine by any of the machine's own addresses; the one that is there as long
as an engine runs is that of the engine's default bridge (`DockerEngine.network.gateway`). The
packets come in through the bridge of the job network, whose inter-container rule does not concern
them: they are for the machine itself, not for another container. So one address, that of the first
engine, serves the containers of all engines, and the collector listens on it alone.

Times are the test's own monotonic clock, in seconds, at which a line was read.
"""

import asyncio
import contextlib
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

BATCH = "batch"


@dataclass(slots=True)
class Run:
    """One run of one operation in one container, as far as was heard."""

    tag: str
    container: str
    began: float
    last_heard: float
    ended: float | None = None
    """None: nobody has said so. Then it ran at least until it was last heard of."""

    @property
    def until(self) -> float:
        """The latest moment at which it is known to have run."""
        return self.last_heard if self.ended is None else self.ended


class Collector:
    """A TCP server; use it as an asynchronous context manager."""

    def __init__(self, host: str, port: int) -> None:
        """Listen on `host`, the address of an engine's bridge."""
        self.host = host
        self.port = port
        self.runs: list[Run] = []
        self.lines = 0
        self._server: asyncio.Server | None = None
        self._streams: dict[asyncio.Task[object] | None, asyncio.StreamWriter] = {}

    @property
    def address(self) -> str:
        """What `MODELYARD_COLLECTOR` is set to."""
        return f"{self.host}:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, self.host, self.port)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._server is not None:
            self._server.close()
        serving = dict(self._streams)
        for stream in serving.values():
            stream.transport.abort()
        # One that is cancelled at the end of its loop prints a traceback.
        if tasks := [task for task in serving if task is not None]:
            await asyncio.wait(tasks)

    def of(self, tag: str) -> list[Run]:
        """Return the runs of one operation, in the order in which they began."""
        return [run for run in self.runs if run.tag == tag]

    def overlaps(self) -> list[tuple[Run, Run]]:
        """Return the pairs of runs of one operation that went on at the same time."""
        by_tag: dict[str, list[Run]] = defaultdict(list)
        for run in self.runs:
            by_tag[run.tag].append(run)
        return [pair for runs in by_tag.values() for pair in _overlapping(runs)]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        teller = _Teller(self.runs)
        task = asyncio.current_task()
        self._streams[task] = writer
        try:
            while line := await reader.readline():
                self.lines += 1
                teller.hear(json.loads(line), time.monotonic())
        except (OSError, ValueError):
            pass  # a container that was killed within a line
        finally:
            teller.gone(time.monotonic())
            del self._streams[task]
            with contextlib.suppress(OSError):
                writer.close()


class _Teller:
    """One container's connection: turns its lines into runs.

    A batch program is one run from its start to its stop, named by its own tag; a server runs
    once for each inference, named by the input's tag.
    """

    def __init__(self, runs: list[Run]) -> None:
        self._runs = runs
        self._open: list[Run] = []

    def hear(self, line: dict[str, object], now: float) -> None:
        for run in self._open:
            run.last_heard = now
        container = str(line["container"])
        match line["event"]:
            case "start" if line.get("mode") == BATCH and line.get("tag"):
                self._begin(str(line["tag"]), container, now)
            case "infer_start" if line.get("input_tag"):
                self._begin(str(line["input_tag"]), container, now)
            case "infer_stop":
                self._end(lambda run: run.tag == line.get("input_tag"), now)
            case "stop":
                self.gone(now)

    def gone(self, now: float) -> None:
        """Note that the container has stopped, or was killed: the kernel closed its socket."""
        self._end(lambda _: True, now)

    def _begin(self, tag: str, container: str, now: float) -> None:
        run = Run(tag, container, now, now)
        self._runs.append(run)
        self._open.append(run)

    def _end(self, which: Callable[[Run], bool], now: float) -> None:
        for run in [run for run in self._open if which(run)]:
            run.ended = now
            self._open.remove(run)


def _overlapping(runs: list[Run]) -> Iterator[tuple[Run, Run]]:
    for first, second in itertools.combinations(sorted(runs, key=lambda run: run.began), 2):
        if second.began < first.until:
            yield first, second
