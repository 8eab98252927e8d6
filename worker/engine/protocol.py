"""The protocol between a worker and its container engine, with the facts and errors it uses.

Two implementations pass the same conformance suite: `DockerRuntime`, and a fake in the tests. All
calls are idempotent. The implementation limits the time of each, except `ensure_image`, `wait_exit`
and `watch`: their caller limits the time, and its cancellation ends the work on the engine too. An
image is always named by its full reference (`full_reference`), so the engine never takes a name
for an id.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.messages import EngineFacts, Progress
from worker.engine.labels import NAME_PREFIXES, ContainerLabels
from worker.engine.plan import ContainerPlan, ImageFacts

OnProgress = Callable[[Progress], None]

# A whole or shortened id, or a name of `labels.container_name`.
_REF = re.compile(rf"[a-f0-9]{{12,64}}|{NAME_PREFIXES.pattern}-[A-Za-z0-9][A-Za-z0-9_.-]{{0,159}}")


class RuntimeFaultError(ModelyardError):
    """Any failure of the engine; each subclass has its error code."""

    default_code = ErrorCode.WORKER_ERROR

    def __init__(self, message: str | None = None, **detail: object) -> None:
        """`message` is text for people; `detail` is sent along in the report."""
        super().__init__(self.default_code, message, **detail)


class EngineUnavailableError(RuntimeFaultError):
    """The engine refused the connection, did not answer in time, or had an internal error."""

    default_code = ErrorCode.ENGINE_UNAVAILABLE


class EngineRefusedError(RuntimeFaultError):
    """The engine refused the request, and would refuse it again."""

    default_code = ErrorCode.ENGINE_REFUSED


class DiskFullError(RuntimeFaultError):
    """The engine has no disk space left for an image or a container."""

    default_code = ErrorCode.DISK_FULL


class ImageNotFoundError(RuntimeFaultError):
    """Neither the engine nor the registry has the image."""

    default_code = ErrorCode.IMAGE_NOT_FOUND


class ImageDeniedError(RuntimeFaultError):
    """The registry denied the image; some registries answer so for images that do not exist."""

    default_code = ErrorCode.IMAGE_DENIED


class ImagePullFailedError(RuntimeFaultError):
    """The registry could not be reached or failed, or the pull broke off."""

    default_code = ErrorCode.IMAGE_PULL_FAILED


class NameConflictError(RuntimeFaultError):
    """Another container already has the planned name."""

    default_code = ErrorCode.CREATE_FAILED


class CreateRefusedError(RuntimeFaultError):
    """The engine refused the container's configuration."""

    default_code = ErrorCode.CREATE_FAILED


class StartRefusedError(RuntimeFaultError):
    """The engine could not start the container."""

    default_code = ErrorCode.START_FAILED


class NoSuchContainerError(RuntimeFaultError):
    """No container has this id or name."""

    default_code = ErrorCode.CONTAINER_MISSING


class FileUnreadableError(RuntimeFaultError):
    """The file does not exist, or is not a regular file."""

    default_code = ErrorCode.BAD_RESULT


class FileTooLargeError(RuntimeFaultError):
    """The file is larger than the caller allows."""

    default_code = ErrorCode.RESULT_TOO_LARGE


def checked_ref(ref: str) -> str:
    """Return `ref` if it is safe in a URL of the engine.

    Raises `NoSuchContainerError`, for example for `../images/prune`, which would change the path.
    """
    if _REF.fullmatch(ref) is None:
        raise NoSuchContainerError(f"{ref[:80]!r} can't be the id or the name of a container.")
    return ref


@dataclass(frozen=True, slots=True)
class Address:
    """The address at which the worker reaches a container's port."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class MountFacts:
    """One mount that the engine reports for a container."""

    kind: str
    source: str
    """The folder of a bind mount, the name of a volume."""
    target: str
    read_only: bool

    @property
    def on_disk(self) -> bool:
        """True if writes to the mount take space on the host's disk."""
        return self.kind == "volume" and not self.read_only


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """One named volume."""

    driver: str
    options: Mapping[str, str]
    """The options of its driver; with those of `local` it can be any folder of the host."""
    mountpoint: str = ""


@dataclass(frozen=True, slots=True)
class ContainerFacts:
    """One container as the engine reports it."""

    id: str
    name: str
    running: bool
    ever_started: bool
    exit_code: int | None
    """None while it runs and before its first start."""
    oom_killed: bool
    labels: ContainerLabels | None
    """None on a container that is not ours."""
    mounts: tuple[MountFacts, ...]
    address: Address | None
    """None if it has no port or does not run."""
    fills_disk: bool = False
    """True if it can write to the host's disk."""
    devices: tuple[str, ...] = ()
    """The devices that are bound to it, by uuid."""
    dead: bool = False
    """True if its removal began and failed, so that all that can be done is to remove it again."""
    inspected: bool = True
    """False if it is only listed, see `list_uninspected`."""


@dataclass(frozen=True, slots=True)
class ContainerExit:
    """How a container's main process ended."""

    code: int
    oom_killed: bool


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """What a container uses of the host's memory, in bytes; nothing while it does not run."""

    in_use: int = 0
    """With files that the kernel keeps in memory for it."""
    droppable: int = 0
    """The part of it that are such files, not used for a while: the kernel drops them when it needs
    room."""
    highest: int | None = None
    """The most that was in use since the container started; None if the kernel does not tell."""

    @property
    def used(self) -> int:
        """Bytes in use now that the kernel can't just drop."""
        return self.in_use - self.droppable


class ContainerRuntime(Protocol):
    """A container engine.

    Every method may raise `EngineUnavailableError`. Methods with an argument that comes from a
    request (an image, a volume, a container) may also raise `EngineRefusedError`, and repeating the
    call does not help then; and `DiskFullError`, above all those that pull, create and start.
    `list_own` and the methods without such an argument raise nothing else.
    """

    async def ping(self) -> None:
        """Return if the engine answers, else raise."""

    async def facts(self) -> EngineFacts:
        """Return the engine's description of itself."""

    async def ensure_network(self) -> None:
        """Create the network of all jobs unless it exists.

        Raises `EngineUnavailableError` if it exists and lets containers reach each other.
        """

    async def ensure_image(self, image: str, on_progress: OnProgress) -> None:
        """Pull the image unless the engine has it; the default tag is `latest`.

        Raises `ImageNotFoundError`, `ImageDeniedError`, `ImagePullFailedError` and `DiskFullError`.
        """

    async def image_names(self) -> list[str]:
        """Return the full references of all images that the engine has, the newest first.

        Each image by its tags and by its digests.
        """

    async def image(self, image: str) -> ImageFacts:
        """Return the facts of an image that the engine has.

        Raises `ImageNotFoundError`.
        """

    async def volume(self, name: str) -> VolumeFacts | None:
        """Return the volume of this name; None if there is none."""

    async def all_volumes(self) -> dict[str, VolumeFacts]:
        """Return all volumes of the engine, by name."""

    async def create(self, plan: ContainerPlan) -> str:
        """Create the planned container, or adopt it if it already exists; return its id.

        Raises `NameConflictError`, `ImageNotFoundError` and `CreateRefusedError`.
        """

    async def link_at(self, container_id: str, path: str) -> str | None:
        """Return the shortest beginning of `path` that is a symbolic link there; None if none is.

        A mount whose target lies behind a link appears elsewhere, perhaps on another mount.
        """

    async def start(self, container_id: str) -> None:
        """Start it; running already is success. Raises `StartRefusedError`."""

    async def stop(self, container_id: str, grace_s: float) -> None:
        """Send the image's stop signal and, `grace_s` seconds later, SIGKILL.

        Stopped already is success.
        """

    async def remove(self, container_id: str) -> None:
        """Kill and remove it with its anonymous volumes; gone already is success."""

    async def inspect(self, ref: str) -> ContainerFacts:
        """Return the facts of a container by its id or name.

        Raises `NoSuchContainerError`, also for one that is being removed, or is `dead`.
        """

    async def list_own(self, job_id: str) -> list[ContainerFacts]:
        """Return this host's own containers of one job, running or not.

        Includes `dead` containers; leaves out those that are being removed.
        """

    async def list_uninspected(self) -> list[ContainerFacts]:
        """Return this host's own containers of all jobs, as far as the engine's list tells.

        The engine inspects a container only once nothing else works on it, and a start or a copy
        may hang; its list waits for nothing. What the list does not tell is empty: `mounts`,
        `devices`, `fills_disk` and `oom_killed`; and `inspected` is False. Includes and leaves out
        the same as `list_own`.
        """

    async def wait_exit(self, container_id: str) -> ContainerExit:
        """Return once the container does not run. Raises `NoSuchContainerError`."""

    async def watch(self, on_change: Callable[[], None]) -> None:
        """Call `on_change` after one of this host's containers exited, was stopped or removed.

        Also called once at the beginning, for earlier changes. The calls are hints: a change may be
        missed or reported twice. Returns when the engine's event stream ends, and after some
        minutes at the latest, because a broken stream looks like one without events.
        """

    async def log_tail(self, container_id: str, *, lines: int) -> str:
        """Return the last lines of stdout and stderr."""

    async def stdout_tail(self, container_id: str, *, max_bytes: int) -> bytes:
        """Return the end of an exited container's stdout; stderr is left out.

        It has at least `max_bytes` if as many were written, and may begin in the middle of a line.
        """

    async def log_is_full(self, container_id: str) -> bool:
        """Return whether the log is so long that the engine may have dropped its beginning."""

    async def memory(self, container_id: str) -> MemoryReading:
        """Measure a container's memory. Raises `NoSuchContainerError`."""

    async def written(self, container_id: str) -> int:
        """Return the bytes that a container has written to its root file system.

        This may take up to a minute, because the engine walks through the files.
        """

    async def volume_sizes(self) -> dict[str, int]:
        """Return the bytes in each of the engine's volumes, by name; takes up to a minute too."""

    async def read_file(self, container_id: str, path: str, *, max_bytes: int) -> bytes:
        """Return a regular file of an exited container.

        Raises `FileUnreadableError` and `FileTooLargeError`.
        """

    async def close(self) -> None:
        """Close the connections to the engine."""
