"""What this host has at hand: images of its engine, volumes, and folders under the dataset roots.

The worker tells of it with each inventory, and the dispatcher prefers hosts that have what a job
needs. Nothing is promised by that: when a container is created, everything is checked again.
"""

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress

import structlog

from modelyard.contract.capacity.local_content import LocalContent, within_bounds
from modelyard.process.tasks import in_daemon_thread
from worker.containers.datasets import Datasets
from worker.containers.images import Images
from worker.engine.protocol import EngineUnavailableError

log = structlog.get_logger(__name__)

LOOK_S = 10.0
"""Seconds from one look at the engine to the next; a pull of this worker is seen at once."""
FOLDERS_S = 60.0
"""Seconds from one walk through the dataset roots to the next: they may be network shares."""
WALK_S = 5.0
"""Seconds that a walk may take until the folders count as not there."""
DEPTH = 2
"""Levels of folders below a root that may be datasets."""
MOST_ENTRIES = 4_096
"""Entries of folders that one walk looks at."""


class LocalContentWatch:
    """Looks again and again what the host has."""

    def __init__(self, images: Images, datasets: Datasets) -> None:
        self._images = images
        self._datasets = datasets
        images.on_pulled = self.look_soon
        self._content = LocalContent()
        self._folders: tuple[str, ...] = ()
        self._walk: asyncio.Future[list[str]] | None = None
        """The running walk: one that never returns keeps its thread until the exit."""
        self._walked_at = float("-inf")
        self._soon = asyncio.Event()
        self._failing = False

    def latest(self) -> LocalContent:
        """Return what the last look has found."""
        return self._content

    def look_soon(self) -> None:
        """Look now: the engine has got an image."""
        self._soon.set()

    async def run(self) -> None:
        """Look every `LOOK_S` seconds, and when something was pulled, until cancelled.

        A look that fails is logged, once until one succeeds; what was seen last stays.
        """
        while True:
            self._soon.clear()
            try:
                await self.look()
            except Exception:  # named boundary: what is only a preference ends nothing else
                if not self._failing:
                    log.exception("local_content.failed")
                self._failing = True
            else:
                self._failing = False
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._soon.wait()

    async def look(self) -> None:
        """Look once; while the engine does not answer, everything stays as it was seen last."""
        try:
            images = within_bounds(await self._images.usable())
            volumes = await self._datasets.mountable_volumes()
        except EngineUnavailableError as error:
            log.debug("local_content.unseen", error=error.message)
            return
        await self._walk_if_due()
        self._content = LocalContent(
            images=images, datasets=within_bounds((*volumes, *self._folders))
        )

    async def _walk_if_due(self) -> None:
        """Look which folders the dataset roots have, unless that was a short time ago.

        While a walk does not come back, nothing is known of the folders: their share is gone.
        """
        now = asyncio.get_running_loop().time()
        walk = self._walk
        if walk is None:
            if now - self._walked_at < FOLDERS_S or not self._datasets.roots:
                return
            self._walked_at = now
            roots = self._datasets.roots
            walk = self._walk = in_daemon_thread(lambda: folders_in(roots), name="dataset-roots")
        try:
            async with asyncio.timeout(WALK_S):
                self._folders = tuple(await asyncio.shield(walk))
        except TimeoutError:
            self._folders = ()
        finally:
            if walk.done():
                self._walk = None


def folders_in(roots: Sequence[str]) -> list[str]:
    """Return the folders in some folders, and these themselves, that are not empty.

    Links are not followed. At most `MOST_ENTRIES` entries are looked at, those of the upper levels
    first. Blocks, perhaps for ever.
    """
    found: list[str] = []
    looked_at = 0
    level = [os.path.normpath(root) for root in roots]
    for depth in range(DEPTH + 1):
        below: list[str] = []
        for folder in level:
            entries = _entries(folder, MOST_ENTRIES - looked_at)
            looked_at += len(entries)
            if entries:
                found.append(folder)
            if depth < DEPTH:
                below += [one.path for one in entries if _is_folder(one)]
        level = sorted(below)
    return found


def _entries(folder: str, most: int) -> list[os.DirEntry[str]]:
    """Return the first entries of a folder; none if it can't be read."""
    found: list[os.DirEntry[str]] = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if len(found) >= most:
                break
            found.append(entry)
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False
