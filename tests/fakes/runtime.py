"""A container engine in memory. It passes the same conformance suite as the Docker runtime.

A container runs a `Program`, which is started, answers the HTTP requests that come to the
container's address (through `FakeRuntime.transport`), and may exit.
"""

import asyncio
import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import httpx2

from modelyard.contract.catalog.images import full_reference
from modelyard.contract.catalog.mounts import TMP, normal
from modelyard.contract.messages import EngineFacts, Progress
from modelyard.process.tasks import TaskGroup
from tests.fakes.transport import FakeTransport
from worker.engine.docker.config import engine_config
from worker.engine.labels import ContainerLabels
from worker.engine.plan import ContainerPlan, ImageFacts
from worker.engine.protocol import (
    Address,
    ContainerExit,
    ContainerFacts,
    EngineUnavailableError,
    FileTooLargeError,
    FileUnreadableError,
    ImageNotFoundError,
    ImagePullFailedError,
    MemoryReading,
    MountFacts,
    NameConflictError,
    NoSuchContainerError,
    OnProgress,
    StartRefusedError,
    VolumeFacts,
    checked_ref,
)

OWN_MEMORY = 1 << 20
"""Bytes that a program takes for itself."""
KILLED = 137
"""128 + SIGKILL, as the engine reports it."""


class Program(Protocol):
    """What runs in a fake container."""

    def start(self, container: "FakeContainer") -> None:
        """Begin; may write, exit at once, or raise `StartRefusedError`."""

    def terminate(self, container: "FakeContainer") -> None:
        """Take SIGTERM; a program that does not exit here is killed after its grace."""

    async def answer(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one HTTP request."""


ProgramOf = Callable[[ContainerPlan], Program]


@dataclass(eq=False)
class FakeContainer:
    """One container, and the hands by which its program acts."""

    id: str
    name: str
    plan: ContainerPlan | None
    """None on a container that is not ours."""
    program: Program | None
    port: int = 0
    running: bool = False
    ever_started: bool = False
    exit_code: int | None = None
    oom_killed: bool = False
    removed: bool = False
    dead: bool = False
    """Set by tests: the engine died while it removed it."""
    stdout: str = ""
    log: str = ""
    log_is_full: bool = False
    """Set by programs: it wrote so much that the beginning of its log was dropped."""
    disk: int = 0
    """Bytes that it has written to the disk."""
    immeasurable: bool = False
    """True: measuring what it has written, or its memory, fails."""
    memory: int = 0
    """Bytes that it uses of the host's memory while it runs."""
    most_memory: int = 0
    """The most of it since it started, by what `use` was told."""
    files: dict[str, bytes] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it stops running or is removed; a new one for each start."""
    on_change: Callable[[], None] = lambda: None
    """Called at the same moments."""

    def use(self, memory: int) -> None:
        """Use so many bytes of memory from now on."""
        self.memory = memory
        self.most_memory = max(self.most_memory, memory)

    def write(self, text: str, *, stderr: bool = False) -> None:
        """Write to the log, and to stdout unless it is stderr."""
        self.log += text
        if not stderr:
            self.stdout += text

    def exit(self, code: int, *, oom_killed: bool = False) -> None:
        """End the process."""
        if self.running:
            self.running = False
            self.exit_code = code
            self.oom_killed = oom_killed
            self.changed.set()
            self.on_change()

    def facts(self) -> ContainerFacts:
        plan = self.plan
        return ContainerFacts(
            id=self.id,
            name=self.name,
            running=self.running,
            ever_started=self.ever_started,
            exit_code=self.exit_code,
            oom_killed=self.oom_killed,
            dead=self.dead,
            devices=plan.devices if plan else (),
            labels=ContainerLabels.parse(plan.labels.as_labels(), name=self.name) if plan else None,
            fills_disk=plan is None or not plan.read_only or plan.kept_folder is not None,
            mounts=_mounts(plan) if plan else (),
            address=Address("127.0.0.1", self.port)
            if plan and plan.port and self.running
            else None,
        )


@dataclass(eq=False)
class _Watch:
    """One who listens to changes."""

    something: asyncio.Event = field(default_factory=asyncio.Event)
    over: bool = False


class FakeRuntime:
    """The engine of one host. What it holds may be changed by tests at any time."""

    def __init__(self, *, host_id: str) -> None:
        self._host_id = host_id
        self._ids = itertools.count(1)
        self._ports = itertools.count(40_000)
        self.available = True
        """False: every call fails as if the engine were away."""
        self.images: dict[str, ProgramOf] = {}
        """Held by the engine."""
        self.registry: dict[str, ProgramOf] = {}
        """Can be pulled."""
        self.pulls: list[str] = []
        self.pulls_now = 0
        """Pulls that are under way."""
        self.pull_steps: list[tuple[int, int]] = [(1, 2), (2, 2)]
        """Progress of every pull, as (current, total)."""
        self.pull_may_end = asyncio.Event()
        """Cleared: pulls hang before their end."""
        self.pull_may_end.set()
        self.pull_fault: str | None = None
        """Set: the registry refuses with these words."""
        self.volumes: dict[str, VolumeFacts] = {}
        """By name."""
        self.volumes_immeasurable = False
        """True: measuring volumes fails."""
        self.volume_bytes: dict[str, int] = {}
        """What is in them, by name."""
        self.image_facts: dict[str, ImageFacts] = {}
        """Of the images that bring something with them, by full reference."""
        self.links: dict[str, set[str]] = {}
        """Paths that are links in an image, by full reference."""
        self.networks = 0
        self.containers: dict[str, FakeContainer] = {}
        """By id."""
        self.created: list[ContainerPlan] = []
        self.forget_mounts = False
        """True: containers are made without their dataset, as after a lost share."""
        self.tells_changes = True
        """False: whoever watches hears nothing, as on a stream that has died in silence."""
        self._watches: list[_Watch] = []
        self.transport = httpx2.MockTransport(self._answer)
        self.model_servers = FakeTransport(self._answer)
        """What a `ModelServer` sends its requests through."""

    async def close(self) -> None:
        """Nothing is held."""

    async def ping(self) -> None:
        self._reach()

    async def facts(self) -> EngineFacts:
        self._reach()
        return EngineFacts(version="fake", api_version="1.41", cpus=4, memory=8 << 30)

    async def ensure_network(self) -> None:
        self._reach()
        self.networks = 1

    async def ensure_image(self, image: str, on_progress: OnProgress) -> None:
        self._reach()
        if self._has_image(image):
            return
        self.pulls.append(image)
        if self.pull_fault is not None:
            raise ImagePullFailedError(f"{image}: {self.pull_fault}")
        offered = {full_reference(name): program for name, program in self.registry.items()}
        if full_reference(image) not in offered:
            raise ImageNotFoundError(f"{image}: manifest unknown")
        self.pulls_now += 1
        try:
            for current, total in self.pull_steps:
                on_progress(Progress(current=current, total=total))
            await self.pull_may_end.wait()
        finally:
            self.pulls_now -= 1
        self.images[image] = offered[full_reference(image)]

    async def image_names(self) -> list[str]:
        self._reach()
        return [full_reference(name) for name in reversed(self.images)]

    async def image(self, image: str) -> ImageFacts:
        self._reach()
        if not self._has_image(image):
            raise ImageNotFoundError(f"{image}: No such image")
        return self.image_facts.get(full_reference(image), ImageFacts())

    def _has_image(self, image: str) -> bool:
        return full_reference(image) in {full_reference(held) for held in self.images}

    async def volume(self, name: str) -> VolumeFacts | None:
        self._reach()
        return self.volumes.get(name)

    async def all_volumes(self) -> dict[str, VolumeFacts]:
        self._reach()
        return dict(self.volumes)

    async def written(self, container_id: str) -> int:
        self._reach()
        container = self._get(container_id)
        if container.immeasurable:
            raise EngineUnavailableError("Docker did not answer within 60 s (tried to measure).")
        return container.disk

    async def memory(self, container_id: str) -> MemoryReading:
        container = self._get(container_id)
        if container.immeasurable:
            raise EngineUnavailableError("Docker did not answer within 5 s (tried to measure).")
        if not container.running:
            return MemoryReading()
        return MemoryReading(container.memory, 0, container.most_memory)

    async def volume_sizes(self) -> dict[str, int]:
        self._reach()
        if self.volumes_immeasurable:
            raise EngineUnavailableError("Docker failed to measure volumes.")
        return dict(self.volume_bytes)

    def add_volume(self, name: str, driver: str = "local", **options: str) -> None:
        """Make a named volume."""
        self.volumes[name] = VolumeFacts(driver, options)

    async def create(self, plan: ContainerPlan) -> str:
        self._reach()
        engine_config(plan)
        known = self._by_name(checked_ref(plan.name))
        if known is not None and known.dead:
            await self.remove(known.id)
        elif known is not None:
            if known.plan is None or not known.plan.labels.same_container(plan.labels):
                raise NameConflictError(f"The name {plan.name} is taken by another container.")
            return known.id
        held = {full_reference(name): program for name, program in self.images.items()}
        if full_reference(plan.image) not in held:
            raise ImageNotFoundError(f"{plan.image}: No such image")
        made = self._add(plan.name, plan, held[full_reference(plan.image)](plan))
        self.created.append(plan)
        return made.id

    async def link_at(self, container_id: str, path: str) -> str | None:
        container = self._get(container_id)
        image = full_reference(container.plan.image) if container.plan else ""
        parts = [str(part) for part in (*reversed(normal(path).parents), normal(path))]
        return next((part for part in parts if part in self.links.get(image, ())), None)

    async def start(self, container_id: str) -> None:
        container = self._get(container_id)
        if container.running or container.program is None:
            return
        container.running = container.ever_started = True
        container.exit_code = None
        container.oom_killed = False
        container.port = next(self._ports)
        container.memory = container.most_memory = 0
        container.use(OWN_MEMORY)
        container.changed = asyncio.Event()
        try:
            container.program.start(container)
        except StartRefusedError:
            container.running = container.ever_started = False
            raise

    async def stop(self, container_id: str, grace_s: float) -> None:
        container = self._get(container_id)
        if container.running and container.program is not None:
            container.program.terminate(container)
            if grace_s >= 0:
                container.exit(KILLED)

    async def remove(self, container_id: str) -> None:
        self._reach()
        container = self._find(checked_ref(container_id))
        if container is not None:
            container.exit(KILLED)
            container.removed = True
            container.changed.set()
            del self.containers[container.id]
            container.on_change()

    async def inspect(self, ref: str) -> ContainerFacts:
        facts = self._get(ref).facts()
        return facts if not self.forget_mounts else _without_mounts(facts)

    async def list_own(self, job_id: str) -> list[ContainerFacts]:
        self._reach()
        return [facts for facts in self._own() if facts.labels and facts.labels.job_id == job_id]

    async def list_uninspected(self) -> list[ContainerFacts]:
        self._reach()
        return [
            replace(
                facts,
                inspected=False,
                mounts=(),
                devices=(),
                fills_disk=False,
                oom_killed=False,
            )
            for facts in self._own()
        ]

    def _own(self) -> list[ContainerFacts]:
        found = [it.facts() for it in self.containers.values()]
        return [it for it in found if it.labels and it.labels.host_id == self._host_id]

    async def wait_exit(self, container_id: str) -> ContainerExit:
        container = self._get(container_id)
        while container.running:
            await container.changed.wait()
        if container.removed:
            raise NoSuchContainerError
        return ContainerExit(container.exit_code or 0, container.oom_killed)

    async def watch(self, on_change: Callable[[], None]) -> None:
        self._reach()
        watch = _Watch()
        self._watches.append(watch)
        try:
            on_change()
            while not watch.over:
                await watch.something.wait()
                watch.something.clear()
                if not watch.over:
                    on_change()
        finally:
            self._watches.remove(watch)

    @property
    def watches(self) -> int:
        """How many watch now."""
        return len(self._watches)

    def end_watches(self) -> None:
        """Break off all watches, as an engine that goes away does."""
        for watch in self._watches:
            watch.over = True
            watch.something.set()

    def tell(self) -> None:
        """Say to all who watch that something has changed, if this engine does."""
        for watch in self._watches if self.tells_changes else ():
            watch.something.set()

    async def log_tail(self, container_id: str, *, lines: int) -> str:
        return "".join(self._get(container_id).log.splitlines(keepends=True)[-lines:])

    async def stdout_tail(self, container_id: str, *, max_bytes: int) -> bytes:
        # A program writes bytes that are no UTF-8 as lone surrogates.
        return self._get(container_id).stdout.encode(errors="surrogateescape")[-max_bytes:]

    async def log_is_full(self, container_id: str) -> bool:
        return self._get(container_id).log_is_full

    async def read_file(self, container_id: str, path: str, *, max_bytes: int) -> bytes:
        files = self._get(container_id).files
        if path not in files:
            raise FileUnreadableError(f"{path} is not there.")
        if len(files[path]) > max_bytes:
            raise FileTooLargeError(f"{path} is larger than {max_bytes} bytes.")
        return files[path]

    def add_foreign(self, name: str) -> FakeContainer:
        """Put a running container on the engine that is not ours."""
        foreign = self._add(name, None, None)
        foreign.running = foreign.ever_started = True
        return foreign

    def die_at_removing(self, container_id: str) -> None:
        """Leave a container as an engine does that died in the middle of its removal."""
        container = self._get(container_id)
        container.exit(KILLED)
        container.dead = True

    def named(self, name: str) -> FakeContainer:
        """Return the container of this name, for tests to act on."""
        found = self._by_name(name)
        if found is None:
            raise KeyError(name)
        return found

    def _add(self, name: str, plan: ContainerPlan | None, program: Program | None) -> FakeContainer:
        number = next(self._ids)
        identity = hashlib.sha256(f"{self._host_id}/{number}".encode()).hexdigest()
        self.containers[identity] = FakeContainer(
            identity, name, plan, program, on_change=self.tell
        )
        return self.containers[identity]

    def _reach(self) -> None:
        if not self.available:
            raise EngineUnavailableError("The fake engine is away.")

    def _by_name(self, name: str) -> FakeContainer | None:
        return next((it for it in self.containers.values() if it.name == name), None)

    def _find(self, ref: str) -> FakeContainer | None:
        named = self._by_name(ref)
        by_id = [it for it in self.containers.values() if it.id.startswith(ref)]
        return named or (by_id[0] if by_id else None)

    def _get(self, ref: str) -> FakeContainer:
        self._reach()
        container = self._find(checked_ref(ref))
        if container is None or container.dead:
            raise NoSuchContainerError
        return container

    async def _answer(self, request: httpx2.Request) -> httpx2.Response:
        """Carry a request to the container at this port; a dying one breaks the connection."""
        port = request.url.port
        there = [it for it in self.containers.values() if it.running and it.port == port]
        if not there or there[0].program is None:
            raise httpx2.ConnectError("The connection was refused.", request=request)
        container, program = there[0], there[0].program
        async with TaskGroup() as tasks:
            answering = tasks.create_task(_answered(program, request))
            dying = tasks.create_task(container.changed.wait())
            await asyncio.wait((answering, dying), return_when=asyncio.FIRST_COMPLETED)
            answering.cancel()
            dying.cancel()
        if answering.cancelled():
            raise httpx2.ReadError("Connection reset by peer", request=request)
        answer = answering.result()
        if isinstance(answer, httpx2.TransportError):
            raise answer
        # Unread, as it comes off a socket; the mock's own responses are read already.
        return httpx2.Response(
            answer.status_code,
            headers=answer.headers,
            stream=httpx2.ByteStream(answer.content),
        )


async def _answered(
    program: Program, request: httpx2.Request
) -> httpx2.Response | httpx2.TransportError:
    """Return a broken connection as a value: raised in a task group it would be a bug's."""
    try:
        return await program.answer(request)
    except httpx2.TransportError as error:
        return error


def _mounts(plan: ContainerPlan) -> tuple[MountFacts, ...]:
    mounts = []
    if plan.dataset is not None:
        dataset = plan.dataset
        mounts.append(MountFacts(dataset.kind, dataset.source, dataset.target, read_only=True))
    if plan.kept_folder is not None:
        name = hashlib.sha256(plan.name.encode()).hexdigest()
        mounts.append(MountFacts("volume", name, plan.kept_folder, read_only=False))
    if plan.kept_folder != str(TMP):
        mounts.append(MountFacts("tmpfs", "", str(TMP), read_only=False))
    return tuple(mounts)


def _without_mounts(facts: ContainerFacts) -> ContainerFacts:
    return replace(facts, mounts=())
