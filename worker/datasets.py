"""Where a dataset lies on this host, whether it may be mounted, and whether it really was."""

import asyncio
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modelyard.contract.catalog import DatasetSpec, ModelSpec
from modelyard.contract.errors import ErrorCode, ModelyardError
from worker.container_plan import DatasetMount
from worker.pauses import GrowingPauses
from worker.runtime import ContainerFacts, ContainerRuntime

PROBE_S = 5.0
"""Seconds that one look at a folder may take; a dead network share answers never."""


class Datasets:
    """The datasets of one host: named volumes, and folders under its dataset roots."""

    def __init__(self, runtime: ContainerRuntime, roots: Sequence[str]) -> None:
        """`roots` are absolute folders; without any, only volumes are mounted."""
        self._runtime = runtime
        self._roots = tuple(roots)

    async def locate(self, dataset: DatasetSpec | None, model: ModelSpec) -> DatasetMount | None:
        """Return the mount that the model asks for, once the dataset is there.

        Raises `dataset_refused` and, after the dataset's `wait_s`, `dataset_unavailable`.
        """
        target = mount_target(dataset, model)
        if dataset is None or target is None:
            return None
        if dataset.volume is not None:
            # The engine would create a missing one, empty.
            if not await self._runtime.volume_exists(dataset.volume):
                raise _unavailable(dataset, f"There is no volume {dataset.volume}.")
            return DatasetMount("volume", dataset.volume, target)
        source = await self._folder(dataset, dataset.path or "")
        return DatasetMount("bind", source, target)

    async def _folder(self, dataset: DatasetSpec, path: str) -> str:
        pauses = GrowingPauses(dataset.wait_s)
        try:
            async with asyncio.timeout(dataset.wait_s + PROBE_S):
                while True:
                    look = await asyncio.to_thread(_look, path, self._roots, dataset.ready_file)
                    if look.folder is not None:
                        return look.folder
                    if not await pauses.again():
                        raise _unavailable(dataset, look.missing)
        except TimeoutError as error:
            raise _unavailable(dataset, f"{path} does not answer.") from error


def verify_mount(facts: ContainerFacts, target: str, source: str | None) -> None:
    """Check that the container has the dataset, read-only; raises `dataset_unavailable`.

    `source` None takes any. An engine creates a container before it looks at a mount's source,
    and a share may go away in between: what is said about a container is what was seen on it.
    """
    seen = {mount.target: mount for mount in facts.mounts}.get(target)
    if seen is None or not seen.read_only or source not in {None, seen.source}:
        raise ModelyardError(
            ErrorCode.DATASET_UNAVAILABLE,
            "The container does not have its dataset.",
            expected=source,
            seen=seen.source if seen else None,
        )


def mount_target(dataset: DatasetSpec | None, model: ModelSpec) -> str | None:
    """Return where the dataset appears in the container; None if nothing is mounted."""
    if dataset is None or model.dataset_mount is None:
        return None
    return os.path.normpath(model.dataset_mount)


@dataclass(frozen=True, slots=True)
class _Look:
    """One look at a folder: where it really is, or what is missing."""

    folder: str | None
    missing: str = ""


def _look(path: str, roots: Sequence[str], ready_file: str | None) -> _Look:
    """Look once. Blocks; raises `dataset_refused` for what lies outside of the roots."""
    real = Path(os.path.realpath(path))
    if not any(real.is_relative_to(os.path.realpath(root)) for root in roots):
        raise ModelyardError(ErrorCode.DATASET_REFUSED, path=path)
    try:
        if not stat.S_ISDIR(real.stat().st_mode):
            raise ModelyardError(ErrorCode.DATASET_REFUSED, "The dataset is not a folder.")
        if ready_file is not None:
            whole = (real / ready_file).exists()
            return _Look(str(real)) if whole else _Look(None, f"{path} has no {ready_file} yet.")
        with os.scandir(real) as entries:
            return _Look(str(real)) if next(entries, None) else _Look(None, f"{path} is empty.")
    except OSError as error:
        return _Look(None, f"{path}: {error.strerror}.")


def _unavailable(dataset: DatasetSpec, message: str) -> ModelyardError:
    return ModelyardError(ErrorCode.DATASET_UNAVAILABLE, message, dataset=dataset.name)
