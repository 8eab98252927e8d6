"""What a worker needs of a container engine, and what can go wrong with it.

Two implementations pass the same conformance suite: the Docker runtime, and a fake of the tests.
All calls are idempotent and bounded in time by the implementation; `ensure_image`, `wait_exit` and
`watch` last as long as they last and are bounded by the caller, whose cancellation ends them on the
engine too. An image is always named to the engine by its full reference (`image_references`), so
that no name is read as an id.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.messages import EngineFacts, Progress
from worker.engine.labels import ContainerLabels
from worker.engine.plan import ContainerPlan, ImageFacts

OnProgress = Callable[[Progress], None]

# A whole or shortened id, or a name that `container_plan` makes.
_REF = re.compile(r"[a-f0-9]{12,64}|modelyard-[A-Za-z0-9][A-Za-z0-9_.-]{0,159}")


class RuntimeFaultError(ModelyardError):
    """The root of what an engine can do to us; the subclass gives the code."""

    default_code = ErrorCode.WORKER_ERROR

    def __init__(self, message: str | None = None, **detail: object) -> None:
        """`message` is for people; `detail` is sent with the report."""
        super().__init__(self.default_code, message, **detail)


class EngineUnavailableError(RuntimeFaultError):
    """The engine refused the connection, did not answer in time, or failed inside."""

    default_code = ErrorCode.ENGINE_UNAVAILABLE


class EngineRefusedError(RuntimeFaultError):
    """The engine answers, and does not do what it was asked: it would refuse it again."""

    default_code = ErrorCode.ENGINE_REFUSED


class DiskFullError(RuntimeFaultError):
    """The engine has no space left for an image, a container or what it would write."""

    default_code = ErrorCode.DISK_FULL


class ImageNotFoundError(RuntimeFaultError):
    """Neither the engine nor the registry has the image."""

    default_code = ErrorCode.IMAGE_NOT_FOUND


class ImageDeniedError(RuntimeFaultError):
    """The registry does not give the image to this engine; some deny what they do not have."""

    default_code = ErrorCode.IMAGE_DENIED


class ImagePullFailedError(RuntimeFaultError):
    """The registry was away or failed, or the pull broke off."""

    default_code = ErrorCode.IMAGE_PULL_FAILED


class NameConflictError(RuntimeFaultError):
    """The name is taken by a container that is not the planned one."""

    default_code = ErrorCode.CREATE_FAILED


class CreateRefusedError(RuntimeFaultError):
    """The engine does not take the configuration."""

    default_code = ErrorCode.CREATE_FAILED


class StartRefusedError(RuntimeFaultError):
    """The engine could not start the container."""

    default_code = ErrorCode.START_FAILED


class NoSuchContainerError(RuntimeFaultError):
    """There is no container of this id or name."""

    default_code = ErrorCode.CONTAINER_MISSING


class FileUnreadableError(RuntimeFaultError):
    """The file is not there, or is not a regular file."""

    default_code = ErrorCode.BAD_RESULT


class FileTooLargeError(RuntimeFaultError):
    """The file is larger than the caller allows."""

    default_code = ErrorCode.RESULT_TOO_LARGE


def checked_ref(ref: str) -> str:
    """Return `ref` if it may travel into a URL of the engine.

    Raises `NoSuchContainerError`: `../images/prune` names no container.
    """
    if _REF.fullmatch(ref) is None:
        raise NoSuchContainerError(f"{ref[:80]!r} can't be the id or the name of a container.")
    return ref


@dataclass(frozen=True, slots=True)
class Address:
    """Where a container's port can be reached from the worker."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class MountFacts:
    """One mount that a container really has."""

    kind: str
    source: str
    """The folder of a bind mount, the name of a volume."""
    target: str
    read_only: bool

    @property
    def on_disk(self) -> bool:
        """True if what is written to it takes room on the disk."""
        return self.kind == "volume" and not self.read_only


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """One named volume."""

    driver: str
    options: Mapping[str, str]
    """What its driver was told; for `local` they may make it any folder of the host."""
    mountpoint: str = ""


@dataclass(frozen=True, slots=True)
class ContainerFacts:
    """One container as the engine sees it now."""

    id: str
    name: str
    running: bool
    ever_started: bool
    exit_code: int | None
    """Null while it runs and before its first start."""
    oom_killed: bool
    labels: ContainerLabels | None
    """None on a container that is not ours."""
    mounts: tuple[MountFacts, ...]
    address: Address | None
    """None without a port, and while it does not run."""
    fills_disk: bool = False
    """True if there is anything in it by which it could fill the host's disk."""
    dead: bool = False
    """Its removal was begun and has not ended, and nobody is at it: it can only be removed."""


@dataclass(frozen=True, slots=True)
class ContainerExit:
    """How a container ended."""

    code: int
    oom_killed: bool


class ContainerRuntime(Protocol):
    """A container engine.

    Every method may raise `EngineUnavailableError`. Those that carry something of a request (an
    image, a volume, a container) may raise `EngineRefusedError` too, which no repetition changes.

    Those that pull, create and start may raise `DiskFullError`.
    """

    async def ping(self) -> None:
        """Return if the engine answers at all."""

    async def facts(self) -> EngineFacts:
        """Return what the engine says of itself."""

    async def ensure_network(self) -> None:
        """Create the job network unless it exists.

        Raises `EngineUnavailableError` if it exists and lets containers reach each other.
        """

    async def has_image(self, image: str) -> bool:
        """Return whether the engine holds the image, without asking a registry."""

    async def ensure_image(self, image: str, on_progress: OnProgress) -> None:
        """Pull the image unless the engine holds it; without a tag it is `latest`.

        Raises `ImageNotFoundError`, `ImageDeniedError`, `ImagePullFailedError` and `DiskFullError`.
        """

    async def image(self, image: str) -> ImageFacts:
        """Return what an image that the engine holds brings with it.

        Raises `ImageNotFoundError`.
        """

    async def volume(self, name: str) -> VolumeFacts | None:
        """Return a named volume, None if there is none."""

    async def create(self, plan: ContainerPlan) -> str:
        """Create the planned container, or adopt the one that is already there; return its id.

        Raises `NameConflictError`, `ImageNotFoundError` and `CreateRefusedError`.
        """

    async def link_at(self, container_id: str, path: str) -> str | None:
        """Return the first part of a path that is a link in the container; None if none is.

        What is mounted behind a link lies elsewhere, perhaps on another mount.
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
        """Return what is true of a container by id or name.

        Raises `NoSuchContainerError`, also for one that is just being removed, or is `dead`.
        """

    async def list_own(self, job_id: str | None = None) -> list[ContainerFacts]:
        """Return this host's labelled containers, running or not, of one job or of all.

        Those too that are `dead`, and not those that are just being removed.
        """

    async def wait_exit(self, container_id: str) -> ContainerExit:
        """Return once it does not run. Raises `NoSuchContainerError`."""

    async def watch(self, on_change: Callable[[], None]) -> None:
        """Call `on_change` after an own container has died, been stopped or been removed.

        Also once at the beginning, for what happened before. Only hints: some changes may be
        missed, some told twice. Returns when the engine tells no more, and after some minutes at
        the latest: a stream that has died in silence can't be told from a quiet one.
        """

    async def log_tail(self, container_id: str, *, lines: int) -> str:
        """Return the last lines of stdout and stderr."""

    async def stdout_tail(self, container_id: str, *, max_bytes: int) -> bytes:
        """Return the end of what an exited container wrote to stdout; stderr is left out.

        It has at least `max_bytes`, if as many were written, and begins anywhere.
        """

    async def log_is_full(self, container_id: str) -> bool:
        """Return whether the log is so long that its beginning may have been dropped."""

    async def written(self, container_id: str) -> int:
        """Return the bytes that a container has written to its root file system.

        It may take up to a minute: the engine walks through the files.
        """

    async def volume_sizes(self) -> dict[str, int]:
        """Return the bytes in each of the engine's volumes, by name; it may take as long."""

    async def read_file(self, container_id: str, path: str, *, max_bytes: int) -> bytes:
        """Return a regular file of an exited container.

        Raises `FileUnreadableError` and `FileTooLargeError`.
        """

    async def close(self) -> None:
        """Release connections."""
