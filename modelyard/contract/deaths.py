"""Why a container stopped, as an error; the exit code of its main process decides."""

from modelyard.contract.capacity.sizes import size_text
from modelyard.contract.errors import ErrorCode, ErrorInfo

_KILLED = 137
"""128 + SIGKILL."""


def death_of(
    exit_code: int | None,
    *,
    oom_killed: bool,
    disk_exceeded: bool = False,
    memory: int | None = None,
) -> ErrorInfo:
    """Return the error that says why a container has stopped.

    Docker's flag `OOMKilled` says that some process in the container was killed because memory ran
    out. If the main process was killed, it was that one. Otherwise the main process exited by
    itself, and the flag is only a detail. `disk_exceeded`: the worker stopped the container because
    it wrote too much to the disk. `memory`: the container's limit in bytes, if it is known.
    """
    if disk_exceeded:
        return ErrorInfo.of(ErrorCode.DISK_QUOTA_EXCEEDED)
    code = ErrorCode.OOM_KILLED if oom_killed and exit_code == _KILLED else ErrorCode.EXITED
    detail: dict[str, object] = {"exit_code": exit_code}
    if oom_killed:
        detail["oom_killed"] = True
    message = over_memory(memory) if code is ErrorCode.OOM_KILLED and memory is not None else None
    return ErrorInfo.of(code, message).model_copy(update={"detail": detail})


def over_memory(limit: int) -> str:
    """Return the sentence for a container that was killed at its limit of memory, in bytes."""
    return (
        f"The container was killed for using more memory than its limit of {size_text(limit)} "
        "(`resources.memory`) allows."
    )
