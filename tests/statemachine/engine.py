"""The engine of one host with model servers in it that take their time, and its own log of runs.

What runs in a container, and what an engine was asked to create, start, stop or remove, goes on
whatever becomes of the worker that asked.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2

from tests.fakes.runtime import OWN_MEMORY, FakeContainer, FakeRuntime, Program
from tests.statemachine.loop import VirtualLoop
from worker.engine.plan import ContainerPlan
from worker.engine.protocol import CreateRefusedError, DiskFullError, EngineUnavailableError

_FINISHED_BY_THE_ENGINE = frozenset({"create", "start", "stop", "remove"})


@dataclass(slots=True)
class Run:
    """One piece of inference that was worked on: the work of one operation."""

    operation_id: str
    container: str
    began: float
    until: float | None = None
    """Null while it runs."""


@dataclass
class Manners:
    """How the servers of one model behave. Tests change it at any time."""

    takes_s: float = 1.0
    """Seconds of one inference, or of the whole of a batch."""
    start_exit: int | None = None
    load_status: int = 200
    takes: int = 0
    """Bytes of host memory that the model takes."""
    keeps: bool = False
    """True: an unload gives none of it back."""
    dies_of_inference: bool = False
    exit_code: int = 0
    """Of a batch."""


class RunLog:
    """All runs on all engines."""

    def __init__(self) -> None:
        self.runs: list[Run] = []

    def overlaps(self) -> list[tuple[str, str]]:
        """Return the operations of which two runs overlap, and a sentence about each."""
        found: list[tuple[str, str]] = []
        by_operation: dict[str, list[Run]] = {}
        for run in self.runs:
            for other in by_operation.setdefault(run.operation_id, []):
                if other.until is None or other.until > run.began:
                    sentence = (
                        f"{run.operation_id} ran in {other.container} from {other.began:.2f} to "
                        f"{other.until} and in {run.container} from {run.began:.2f}"
                    )
                    found.append((run.operation_id, sentence))
            by_operation[run.operation_id].append(run)
        return found

    def repeated(self) -> list[str]:
        """Return the operations that were worked on more than once, whether at once or not."""
        counts = Counter(run.operation_id for run in self.runs)
        return [operation_id for operation_id, count in counts.items() if count > 1]


class ModelProgram(Program):
    """Speaks all profiles. What it works on is named by the input: `{"operation": id}`."""

    def __init__(
        self, loop: VirtualLoop, log: RunLog, manners: Manners, plan: ContainerPlan, *, batch: bool
    ) -> None:
        self._loop = loop
        self._log = log
        self._manners = manners
        self._plan = plan
        self._batch = batch
        self._boots = 0
        self._container: FakeContainer | None = None
        self.loaded = False
        self.ready_from_start = False

    def start(self, container: FakeContainer) -> None:
        self._boots += 1
        self._container = container
        self.loaded = self.ready_from_start
        if self._manners.start_exit is not None:
            container.exit(self._manners.start_exit)
        elif self._batch:
            self._loop.serve(self._run_batch(container, self._boots))

    def terminate(self, container: FakeContainer) -> None:
        container.exit(143)

    async def answer(self, request: httpx2.Request) -> httpx2.Response:
        word = request.url.path.rpartition("/")[2]
        if word == "ready":
            return httpx2.Response(200 if self.loaded else 503)
        if word == "load":
            await asyncio.sleep(0.2)
            self.loaded = self.loaded or self._manners.load_status == httpx2.codes.OK
            if self.loaded and self._container is not None:
                self._container.use(OWN_MEMORY + self._manners.takes)
            return httpx2.Response(self._manners.load_status)
        if word == "unload":
            self.loaded = False
            if self._container is not None and not self._manners.keeps:
                self._container.use(OWN_MEMORY)
        return httpx2.Response(200)

    async def infer(self, container: FakeContainer, content: bytes) -> httpx2.Response:
        """Work on an inference; it is over when the container is."""
        asked = json.loads(content or b"null")
        run = self._begin(str((asked or {}).get("operation")), container)
        changed = container.changed
        await _until(changed, self._manners.takes_s / 2)
        if self._manners.dies_of_inference:
            container.exit(139)
        await _until(changed, self._manners.takes_s / 2)
        run.until = self._loop.time()
        if changed.is_set():
            return httpx2.Response(500)
        return httpx2.Response(200, json={"echo": asked})

    async def _run_batch(self, container: FakeContainer, boot: int) -> None:
        run = self._begin(self._plan.labels.operation_id, container)
        await _until(container.changed, self._manners.takes_s)
        run.until = self._loop.time()
        if container.running and boot == self._boots:
            container.write(json.dumps({"batch": self._plan.labels.operation_id}) + "\n")
            container.exit(self._manners.exit_code)

    def _begin(self, operation_id: str, container: FakeContainer) -> Run:
        run = Run(operation_id, f"{self._plan.labels.host_id}/{container.name}", self._loop.time())
        self._log.runs.append(run)
        return run


async def _until(changed: asyncio.Event, seconds: float) -> None:
    """Let some seconds pass, or less if the container ends before."""
    try:
        async with asyncio.timeout(seconds):
            await changed.wait()
    except TimeoutError:
        return


class Note:
    """In the place of the file that the watchdogs of a host share."""

    def __init__(self) -> None:
        self.text = ""
        self._fresh = ""

    def with_suffix(self, suffix: str) -> "Note":
        del suffix
        return self

    def write_text(self, text: str) -> None:
        self._fresh = text

    def replace(self, target: "Note") -> None:
        target.text = self._fresh

    def read_text(self) -> str:
        return self.text


class Engine(FakeRuntime):
    """A fake engine whose disk may be full; inferences in it outlive who asked for them."""

    def __init__(self, loop: VirtualLoop, *, host_id: str) -> None:
        super().__init__(host_id=host_id)
        self._loop = loop
        self.host_id = host_id
        self.note = Note()
        self._folder = TemporaryDirectory()
        self.journal_file = Path(self._folder.name) / "attempts"
        """Of the host's workers."""
        self.disk_full = False
        self.refuses_creates = False

    async def create(self, plan: ContainerPlan) -> str:
        if self.disk_full:
            raise DiskFullError("no space left on device")
        if self.refuses_creates:
            raise CreateRefusedError("refused")
        return await super().create(plan)

    async def remove_past_all(self, container: FakeContainer) -> None:
        """Remove a container behind the worker's back, also while the engine does not answer."""
        available, self.available = self.available, True
        await self.remove(container.id)
        self.available = available

    async def _answer(self, request: httpx2.Request) -> httpx2.Response:
        container = next(
            (it for it in self.containers.values() if it.running and it.port == request.url.port),
            None,
        )
        if container is None or not isinstance(container.program, ModelProgram):
            return await super()._answer(request)
        if request.url.path.rpartition("/")[2] != "infer":
            return await super()._answer(request)
        content = request.content
        answer = await asyncio.shield(self._loop.serve(container.program.infer(container, content)))
        if container.changed.is_set():
            raise httpx2.ReadError("Connection reset by peer", request=request)
        return httpx2.Response(
            answer.status_code, headers=answer.headers, stream=httpx2.ByteStream(answer.content)
        )


@dataclass
class EngineWay:
    """An engine as one boot of a worker reaches it: a `ContainerRuntime`."""

    loop: VirtualLoop
    engine: Engine
    pause: Callable[[], Awaitable[None]]
    slow_s: list[float] = field(default_factory=lambda: [0.0])
    """Seconds that each call takes beside; shared by all ways to one engine."""
    up: bool = True
    calls: int = 0
    """How many calls were made."""

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self.engine, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            await self._pause()
            if name in _FINISHED_BY_THE_ENGINE:
                answer = await asyncio.shield(self.loop.serve(method(*args, **kwargs)))
            else:
                answer = await method(*args, **kwargs)
            await self._pause()
            return answer

        return call

    async def _pause(self) -> None:
        if self.slow_s[0]:
            try:
                async with asyncio.timeout(30.0):  # the real runtime's own deadline
                    await asyncio.sleep(self.slow_s[0])
            except TimeoutError as error:
                raise EngineUnavailableError("It takes too long.") from error
        await self.pause()
        if not self.up:
            raise EngineUnavailableError("It is away.")
