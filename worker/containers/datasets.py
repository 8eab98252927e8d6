"""Finds datasets on this host, checks that they may be mounted, and that they really were."""

import asyncio
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from modelyard.contract.catalog.entries import DatasetSpec, ModelSpec
from modelyard.contract.catalog.mounts import normal, overlap
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.process.tasks import in_daemon_thread
from worker.containers.polling import GrowingPauses
from worker.engine.plan import DatasetMount
from worker.engine.protocol import ContainerFacts, ContainerRuntime, VolumeFacts

PROBE_S = 5.0
"""Seconds that one check of a folder may take; a dead network share never answers."""
MAX_CHECKS = 32
"""Checks that may run at the same time; one that never returns keeps its thread until the exit."""


_HARMLESS_OPTIONS = frozenset({"size"})
"""Options of a volume that do not change where it is stored."""
_OUTSIDE = "The dataset lies outside of the host's MODELYARD_WORKER_DATASET_ROOTS."


class Datasets:
    """The datasets of one host: volumes that it allows, and folders under its dataset roots."""

    def __init__(
        self, runtime: ContainerRuntime, roots: Sequence[str], volumes: Sequence[str] = ()
    ) -> None:
        """`roots` are absolute folders; `volumes` are names in which `*` stands for any letters.

        Without roots no folder is mounted, and without volume names no volume.
        """
        self._runtime = runtime
        self.roots = tuple(roots)
        self._volumes = tuple(volumes)
        self._checks: dict[tuple[str, str | None], asyncio.Future[_FolderCheck]] = {}
        """The running checks; callers that check the same folder share one."""

    async def locate(self, dataset: DatasetSpec | None, model: ModelSpec) -> DatasetMount | None:
        """Wait until the dataset exists; return its mount, None if the model mounts none.

        Raises `dataset_refused` and, after the dataset's `wait_s`, `dataset_unavailable`.
        """
        target = mount_target(dataset, model)
        if dataset is None or target is None:
            return None
        if dataset.volume is not None:
            await self._check_volume(dataset, dataset.volume)
            return DatasetMount("volume", dataset.volume, target)
        source = await self._folder(dataset, dataset.path or "")
        return DatasetMount("bind", source, target)

    async def mountable_volumes(self) -> list[str]:
        """Return the names of the volumes that may be mounted; raises `EngineUnavailableError`."""
        if not self._volumes:
            return []
        found = await self._runtime.all_volumes()
        return sorted(name for name, one in found.items() if self._allows(name) and _is_plain(one))

    def _allows(self, volume: str) -> bool:
        return any(fnmatchcase(volume, pattern) for pattern in self._volumes)

    async def _check_volume(self, dataset: DatasetSpec, name: str) -> None:
        """Check that a volume may be mounted and exists.

        By its options a volume can be any folder of this host or of another one. Only a volume that
        Docker keeps in its own folder is accepted.
        """
        if not self._allows(name):
            raise ModelyardError(
                ErrorCode.DATASET_REFUSED,
                f"This host may not mount the volume {name}: the setting "
                "MODELYARD_WORKER_ALLOWED_VOLUMES of its worker does not allow it.",
                volume=name,
            )
        volume = await self._runtime.volume(name)
        if volume is None:  # the engine would create it, empty
            raise _unavailable(dataset, f"There is no volume {name}.")
        if not _is_plain(volume):
            raise ModelyardError(
                ErrorCode.DATASET_REFUSED,
                f"The volume {name} is not a plain one of Docker's driver local: with another "
                "driver, or with options such as type, o and device, it can be any folder.",
                volume=name,
                driver=volume.driver,
                options=sorted(volume.options),
            )

    async def _folder(self, dataset: DatasetSpec, path: str) -> str:
        pauses = GrowingPauses(dataset.wait_s)
        try:
            async with asyncio.timeout(dataset.wait_s + PROBE_S):
                while True:
                    check = await self._shared_check(path, dataset.ready_file)
                    if check.refused is not None:
                        raise ModelyardError(ErrorCode.DATASET_REFUSED, check.refused, path=path)
                    if check.folder is not None:
                        return check.folder
                    if not await pauses.pause():
                        raise _unavailable(dataset, check.missing)
        except TimeoutError as error:
            raise _unavailable(dataset, f"{path} does not answer.") from error

    async def _shared_check(self, path: str, ready_file: str | None) -> "_FolderCheck":
        key = (path, ready_file)
        running = self._checks.get(key)
        if running is None:
            if len(self._checks) >= MAX_CHECKS:
                return _FolderCheck(missing="Too many folders of this host do not answer.")
            running = in_daemon_thread(
                lambda: _check_folder(path, self.roots, ready_file), name="dataset"
            )
            self._checks[key] = running
            running.add_done_callback(lambda _: self._checks.pop(key))
        return await asyncio.shield(running)


def _is_plain(volume: VolumeFacts) -> bool:
    """Tell whether Docker keeps the volume in its own folder."""
    return volume.driver == "local" and _HARMLESS_OPTIONS.issuperset(volume.options)


def verify_mount(facts: ContainerFacts, target: str, expected: DatasetMount | None = None) -> None:
    """Check on the container itself that the dataset is its only mount there, and read-only.

    `expected` None accepts any source. The check is needed because an engine resolves a mount's
    source after it has created the container, and a network share may go away in between. Raises
    `dataset_unavailable`.
    """
    there = [it for it in facts.mounts if overlap(normal(it.target), normal(target))]
    seen = there[0] if len(there) == 1 else None
    wanted = (expected.kind, expected.source) if expected else None
    if (
        seen is None
        or seen.target != target
        or seen.kind not in {"bind", "volume"}
        or not seen.read_only
        or wanted not in {None, (seen.kind, seen.source)}
    ):
        raise ModelyardError(
            ErrorCode.DATASET_UNAVAILABLE,
            "The container does not have its dataset, or something else is mounted in its place.",
            expected=expected.source if expected else None,
            seen=[f"{it.kind} {it.source} at {it.target}" for it in there],
        )


def mount_target(dataset: DatasetSpec | None, model: ModelSpec) -> str | None:
    """Return where the dataset appears in the container; None if nothing is mounted."""
    if dataset is None or model.dataset_mount is None:
        return None
    return os.path.normpath(model.dataset_mount)


@dataclass(frozen=True, slots=True)
class _FolderCheck:
    """The result of one check of a folder: its real path, or what is missing, or why refused."""

    folder: str | None = None
    missing: str = ""
    refused: str | None = None


def _check_folder(path: str, roots: Sequence[str], ready_file: str | None) -> _FolderCheck:
    """Check a folder. Blocks, perhaps for ever."""
    try:
        real = Path(os.path.realpath(path))
        refused = _refusal(real, roots)
        if refused is not None:
            return _FolderCheck(refused=refused)
        if ready_file is not None:
            if not (real / ready_file).exists():
                return _FolderCheck(missing=f"{path} has no {ready_file} yet.")
        else:
            with os.scandir(real) as entries:
                if next(entries, None) is None:
                    return _FolderCheck(missing=f"{path} is empty.")
        return _FolderCheck(str(real))
    except OSError as error:
        return _FolderCheck(missing=f"{path}: {error.strerror}.")


def _refusal(real: Path, roots: Sequence[str]) -> str | None:
    """Return why a folder may not be mounted, by its real path; None if it may. May block."""
    if not any(real.is_relative_to(os.path.realpath(root)) for root in roots):
        return _OUTSIDE
    if not stat.S_ISDIR(real.stat().st_mode):
        return "The dataset is not a folder."
    try:
        str(real).encode()
    except UnicodeEncodeError:
        return "The dataset's folder has a name that is not UTF-8."
    return None


def _unavailable(dataset: DatasetSpec, message: str) -> ModelyardError:
    return ModelyardError(ErrorCode.DATASET_UNAVAILABLE, message, dataset=dataset.name)
