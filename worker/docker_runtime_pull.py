"""Pulling an image and telling its failures apart."""

import aiodocker
from aiodocker.exceptions import DockerError

from modelyard.contract.messages import Progress
from worker.docker_documents import PullLine, PullProgress
from worker.docker_runtime_calls import NOT_FOUND, UNREACHABLE
from worker.runtime import ImageNotFoundError, ImagePullFailedError, OnProgress, RuntimeFaultError

# The engine passes a registry's refusal on as text, in most cases inside of a stream that began
# with status 200. These are the words of distribution registries and of the engine itself.
_ABSENT = ("manifest unknown", "does not exist", "not found", "name unknown")
_NOT_ABSENT = ("lookup ", "dial tcp", "no such host")


async def pull(docker: aiodocker.Docker, image: str, on_progress: OnProgress) -> None:
    """Pull `image`; the caller bounds the time and looks afterwards whether it is there.

    Raises `ImageNotFoundError` and `ImagePullFailedError`.
    """
    progress = PullProgress()
    try:
        # Without a tag or digest aiodocker asks for `latest`, not for all tags.
        async for raw in docker.images.pull(image, stream=True):
            if progress.take(PullLine.model_validate(raw)):
                on_progress(Progress(current=progress.current, total=progress.total))
    except DockerError as error:
        if error.status == UNREACHABLE:
            raise
        raise _refusal(image, error) from error


def _refusal(image: str, error: DockerError) -> RuntimeFaultError:
    words = (error.message or "").lower()
    unreachable = any(mark in words for mark in _NOT_ABSENT)
    if not unreachable and (error.status == NOT_FOUND or any(mark in words for mark in _ABSENT)):
        return ImageNotFoundError(f"{image}: {error.message}")
    return ImagePullFailedError(f"{image}: {error.message}")
