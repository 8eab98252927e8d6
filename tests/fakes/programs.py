"""Programs for the fake engine: a model server that does as it is told, and a batch job."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx2

from tests.fakes.runtime import OWN_MEMORY, FakeContainer
from worker.engine.protocol import StartRefusedError

TERMINATED = 143
"""128 + SIGTERM."""


def _set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass
class FakeServer:
    """Speaks the Open Inference Protocol and plain hooks (`/alive`, `/load`, ...) alike.

    The same words as the test image: a path that ends in `live` or `alive`, `ready`, `load`,
    `unload`, `infer`.
    """

    alive: bool = True
    loads: int = 0
    unloads: int = 0
    loaded: bool = False
    takes: int = 0
    """Bytes of memory that its model takes."""
    rests: int = 0
    """Bytes that it keeps after an unload."""
    keeps: bool = False
    """True: an unload gives no memory back."""
    becomes_ready: bool = True
    ready_from_start: bool = False
    silent: bool = False
    """True: connections are taken and closed without an answer, as a server that is cut short."""
    busy: asyncio.Event = field(default_factory=_set_event)
    """Cleared: nothing is answered meanwhile, as by a server with one thread that works."""
    overloaded: bool = False
    """True: it answers 503 to ready, as a server that has too much to do."""
    unready_text: str = ""
    """What comes with such a 503."""
    before_answer: Callable[[], None] = lambda: None
    repository: bool = True
    """False: the repository paths are not there."""
    start_exit: int | None = None
    refuse_start: str | None = None
    load_status: int = 200
    load_text: str = "load"
    has_index: bool = False
    """True: the repository can be listed, so that a 404 is about the model."""
    moves_away: bool = False
    """True: nothing listens where it is looked for."""
    load_exit: int | None = None
    may_load: asyncio.Event = field(default_factory=_set_event)
    """Cleared: a load hangs."""
    may_infer: asyncio.Event = field(default_factory=_set_event)
    """Cleared: an inference hangs."""
    infers_now: int = 0
    most_infers: int = 0
    infer: Callable[[httpx2.Request], httpx2.Response] | None = None
    """None echoes the body as `{"echo": ...}`."""
    requests: list[str] = field(default_factory=list)
    container: FakeContainer | None = None

    def start(self, container: FakeContainer) -> None:
        if self.refuse_start is not None:
            raise StartRefusedError(self.refuse_start)
        self.container = container
        self.loaded = self.ready_from_start
        if self.loaded:
            self._use(self.takes)
        container.write("server starts\n", stderr=True)
        if self.start_exit is not None:
            container.exit(self.start_exit)

    def terminate(self, container: FakeContainer) -> None:
        container.exit(TERMINATED)

    async def answer(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(f"{request.method} {request.url.raw_path.decode()}")
        self.before_answer()
        if self.moves_away:
            raise httpx2.ConnectError("The connection was refused.")
        if self.silent:
            raise httpx2.RemoteProtocolError("The connection was closed without an answer.")
        await self.busy.wait()
        word = request.url.path.rpartition("/")[2]
        if not self.repository and request.url.path.startswith("/v2/repository/"):
            word = ""
        if word == "index" and self.has_index:
            return httpx2.Response(200, json=[])
        if word in {"live", "alive", "ready"}:
            ready = self.loaded and self.becomes_ready and not self.overloaded
            return self._says(ready if word == "ready" else self.alive)
        if word == "load":
            return await self._load()
        if word == "unload":
            self.unloads += 1
            self.loaded = False
            if not self.keeps:
                self._use(self.rests)
            return httpx2.Response(200)
        if word == "infer":
            return await self._infer(request)
        return httpx2.Response(404, text="not found")

    def _says(self, yes: bool) -> httpx2.Response:  # noqa: FBT001 - the answer
        return httpx2.Response(200) if yes else httpx2.Response(503, text=self.unready_text)

    def _use(self, memory: int) -> None:
        if self.container is not None:
            self.container.use(OWN_MEMORY + memory)

    async def _load(self) -> httpx2.Response:
        self.loads += 1
        await self.may_load.wait()
        if self.load_exit is not None and self.container is not None:
            self.container.write("cannot read the weights\n", stderr=True)
            self.container.exit(self.load_exit)
        if self.load_status == httpx2.codes.OK:
            self.loaded = True
            self._use(self.takes)
        return httpx2.Response(self.load_status, text=self.load_text)

    async def _infer(self, request: httpx2.Request) -> httpx2.Response:
        self.infers_now += 1
        self.most_infers = max(self.most_infers, self.infers_now)
        try:
            await self.may_infer.wait()
            if self.infer is not None:
                return self.infer(request)
            return httpx2.Response(200, json={"echo": json.loads(request.content or b"null")})
        finally:
            self.infers_now -= 1


@dataclass
class FakeBatch:
    """Writes, leaves files, and exits; or hangs until it is stopped."""

    exit_code: int | None = 0
    """None: it does not end by itself."""
    stdout: str = ""
    stderr: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    oom_killed: bool = False
    log_is_full: bool = False
    disk: int = 0
    """Bytes that it writes to the disk."""
    starts: int = 0

    def start(self, container: FakeContainer) -> None:
        self.starts += 1
        container.write(self.stderr, stderr=True)
        container.write(self.stdout)
        container.files.update(self.files)
        container.log_is_full = self.log_is_full
        container.disk = self.disk
        if self.exit_code is not None:
            container.exit(self.exit_code, oom_killed=self.oom_killed)

    def terminate(self, container: FakeContainer) -> None:
        container.exit(TERMINATED)

    async def answer(self, request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(404, request=request)
