"""Getting an image onto the host: allowed, once for all who ask, and with its progress told."""

import asyncio
import time
from collections.abc import Callable

from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.messages import Progress
from modelyard.process.crash_points import crash_point
from worker.engine.image_references import AllowList
from worker.engine.protocol import ContainerRuntime, OnProgress

PROGRESS_INTERVAL_S = 0.5


class _Pull:
    """One pull that is under way, and who listens."""

    def __init__(self) -> None:
        self.listeners: list[OnProgress] = []
        self.ended: asyncio.Future[ModelyardError | None] = (
            asyncio.get_running_loop().create_future()
        )

    def tell(self, progress: Progress) -> None:
        for listener in self.listeners:
            listener(progress)


class Images:
    """The images of one engine."""

    def __init__(
        self,
        runtime: ContainerRuntime,
        allowed: AllowList,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` counts seconds and only decides how often progress is told."""
        self._runtime = runtime
        self._allowed = allowed
        self._clock = clock
        self._pulls: dict[str, _Pull] = {}

    async def ensure(
        self, image: str, on_pull: Callable[[], None], on_progress: OnProgress
    ) -> None:
        """Return once the engine holds the image; `on_pull` is called first if it does not yet.

        Raises `image_refused`, `image_not_found`, `image_denied`, `image_pull_failed` or
        `disk_full`. Whoever asks while a pull of the same image is under way waits for that one,
        and shares its failure.
        """
        if not self._allowed.allows(image):
            raise ModelyardError(
                ErrorCode.IMAGE_REFUSED,
                f"This host may not run {image}: MODELYARD_WORKER_ALLOWED_IMAGES of its "
                "worker does not hold it.",
                image=image,
            )
        if image not in self._pulls and await self._runtime.has_image(image):
            return
        on_pull()
        throttled = self._throttled(on_progress)
        while True:
            pull = self._pulls.get(image)
            if pull is None:
                await self._lead(image, throttled)
                return
            if await _follow(pull, throttled):
                return

    async def _lead(self, image: str, on_progress: OnProgress) -> None:
        pull = self._pulls[image] = _Pull()
        pull.listeners.append(on_progress)
        try:
            crash_point("worker.pull.before_pull")
            await self._runtime.ensure_image(image, pull.tell)
            crash_point("worker.pull.after_pull")
            pull.ended.set_result(None)
        except ModelyardError as error:
            pull.ended.set_result(error)
            raise
        finally:
            del self._pulls[image]
            # Cancelled, or a fault of our own: one of the followers pulls instead.
            pull.ended.cancel()

    def _throttled(self, on_progress: OnProgress) -> OnProgress:
        told_at = float("-inf")

        def tell(progress: Progress) -> None:
            nonlocal told_at
            now = self._clock()
            if now - told_at >= PROGRESS_INTERVAL_S or progress.current == progress.total:
                told_at = now
                on_progress(progress)

        return tell


async def _follow(pull: _Pull, on_progress: OnProgress) -> bool:
    """Wait for another's pull; false if its leader went away. Raises what the pull did."""
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
