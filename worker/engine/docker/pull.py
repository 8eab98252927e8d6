"""Pulls an image and classifies the failures of a pull."""

import aiodocker
from aiodocker.exceptions import DockerError

from modelyard.contract.messages import Progress
from worker.engine.docker.calls import (
    NOT_FOUND,
    UNREACHABLE,
    disk_is_full,
    is_refusal,
    streamed,
)
from worker.engine.docker.documents import PullLine, PullProgress
from worker.engine.protocol import (
    DiskFullError,
    ImageDeniedError,
    ImageNotFoundError,
    ImagePullFailedError,
    OnProgress,
    RuntimeFaultError,
)

# The engine passes a registry's refusal on as text, in most cases within a stream that began with
# status 200. These texts come from distribution registries and from the engine itself.
_ABSENT = ("manifest unknown", "does not exist", "not found", "name unknown")
_DENIED = (
    "pull access denied",
    "requested access to the resource is denied",
    "unauthorized",
    "authentication required",
    "no basic auth credentials",
    "403 forbidden",
    "http 403",
)
_UNAVAILABLE = ("lookup ", "dial tcp", "no such host")


async def pull(docker: aiodocker.Docker, image: str, on_progress: OnProgress) -> None:
    """Pull `image`, a full reference. A cancellation ends the pull on the engine too.

    The caller limits the time, and checks afterwards that the engine has the image.
    Raises `ImageNotFoundError`, `ImageDeniedError`, `ImagePullFailedError` and `DiskFullError`.
    """
    progress = PullProgress()
    try:
        async with streamed(
            docker, "images/create", method="POST", params={"fromImage": image}
        ) as response:
            async for raw in response.content:
                line = PullLine.model_validate_json(raw)
                if line.error:
                    raise _refusal(image, line.error)
                if progress.take(line):
                    on_progress(Progress(current=progress.current, total=progress.total))
    except DockerError as error:
        if error.status == UNREACHABLE:
            raise
        absent = error.status == NOT_FOUND
        refusal = _refusal(image, error.message or "", absent=absent)
        if type(refusal) is ImagePullFailedError and is_refusal(error):
            raise  # the engine refused the name or the call, and asked no registry
        raise refusal from error


def _refusal(image: str, message: str, *, absent: bool = False) -> RuntimeFaultError:
    text = message.lower()
    if disk_is_full(text):
        return DiskFullError(f"{image}: {message}")
    kind: type[RuntimeFaultError] = ImagePullFailedError
    if not any(mark in text for mark in _UNAVAILABLE):
        # A denial comes first: its message often says as well that the image does not exist.
        if any(mark in text for mark in _DENIED):
            kind = ImageDeniedError
        elif absent or any(mark in text for mark in _ABSENT):
            kind = ImageNotFoundError
    return kind(f"{image}: {message}")
