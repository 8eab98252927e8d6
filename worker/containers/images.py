"""Pulls allowed images onto the host; callers that want the same image share one pull."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.messages import Progress
from modelyard.process.crash_points import crash_point
from worker.engine.image_references import AllowList
from worker.engine.plan import ImageFacts
from worker.engine.protocol import ContainerRuntime, ImageNotFoundError, OnProgress

PROGRESS_INTERVAL_S = 0.5


class _Pull:
    """One running pull and the callers that receive its progress."""

    def __init__(self) -> None:
        self.listeners: list[OnProgress] = []
        self.ended: asyncio.Future[ModelyardError | None] = (
            asyncio.get_running_loop().create_future()
        )

    def report(self, progress: Progress) -> None:
        for listener in self.listeners:
            listener(progress)


class Images:
    """The images of one engine."""

    def __init__(self, runtime: ContainerRuntime, allowed: AllowList) -> None:
        self._runtime = runtime
        self._allowed = allowed
        self._pulls: dict[str, _Pull] = {}
        self.on_pulled: Callable[[], None] = lambda: None
        """Called when the engine has got an image."""

    async def usable(self) -> list[str]:
        """Return the full references of the images that the engine has and that may run here.

        Raises `EngineUnavailableError`.
        """
        return [name for name in await self._runtime.image_names() if self._allowed.allows(name)]

    async def ensure(
        self, image: str, on_pull: Callable[[], None], on_progress: OnProgress
    ) -> ImageFacts:
        """Return the image once the engine has it; if it has to be pulled, call `on_pull` first.

        A caller that comes while the same image is pulled waits for that pull and shares its
        failure. Raises `image_refused`, `image_not_found`, `image_denied`, `image_pull_failed` or
        `disk_full`.
        """
        if not self._allowed.allows(image):
            raise ModelyardError(
                ErrorCode.IMAGE_REFUSED,
                f"This host may not run {image}: the setting MODELYARD_WORKER_ALLOWED_IMAGES of "
                "its worker does not allow it.",
                image=image,
            )
        if image not in self._pulls:
            with suppress(ImageNotFoundError):
                return await self._runtime.image(image)
        on_pull()
        await self._pulled(image, self._throttled(on_progress))
        return await self._runtime.image(image)

    async def _pulled(self, image: str, on_progress: OnProgress) -> None:
        """Return once a pull of the image has succeeded: this caller's or another one's."""
        while True:
            pull = self._pulls.get(image)
            if pull is None:
                await self._pull(image, on_progress)
                return
            if await _wait_for(pull, on_progress):
                return

    async def _pull(self, image: str, on_progress: OnProgress) -> None:
        pull = self._pulls[image] = _Pull()
        pull.listeners.append(on_progress)
        try:
            crash_point("worker.pull.before_pull")
            await self._runtime.ensure_image(image, pull.report)
            crash_point("worker.pull.after_pull")
            pull.ended.set_result(None)
            self.on_pulled()
        except ModelyardError as error:
            pull.ended.set_result(error)
            raise
        finally:
            del self._pulls[image]
            # No result means that this caller was cancelled or hit a defect: a waiting one pulls.
            pull.ended.cancel()

    def _throttled(self, on_progress: OnProgress) -> OnProgress:
        reported_at = float("-inf")

        def report(progress: Progress) -> None:
            nonlocal reported_at
            now = time.monotonic()
            if now - reported_at >= PROGRESS_INTERVAL_S or progress.current == progress.total:
                reported_at = now
                on_progress(progress)

        return report


async def _wait_for(pull: _Pull, on_progress: OnProgress) -> bool:
    """Wait for another caller's pull; false if that caller stopped. Raises the pull's error."""
    pull.listeners.append(on_progress)
    try:
        await asyncio.wait((pull.ended,))
    finally:
        pull.listeners.remove(on_progress)
    if pull.ended.cancelled():
        return False
    error = pull.ended.result()
    if error is not None:
        raise error
    return True
