"""What the end of a container's main process says: the process's own exit decides."""

from modelyard.contract.errors import ErrorCode, ErrorInfo

_KILLED = 137
"""128 + SIGKILL."""


def death_of(exit_code: int | None, *, oom_killed: bool, disk_exceeded: bool = False) -> ErrorInfo:
    """Return why a container does not run any more.

    Docker's flag `OOMKilled` says that some process in the container was killed for want of memory.
    It was the main one if that was killed; else the main one has ended as its exit code says, and
    the flag is a detail. `disk_exceeded`: the worker has ended it for what it wrote.
    """
    if disk_exceeded:
        return ErrorInfo.of(ErrorCode.DISK_QUOTA_EXCEEDED)
    code = ErrorCode.OOM_KILLED if oom_killed and exit_code == _KILLED else ErrorCode.EXITED
    detail: dict[str, object] = {"exit_code": exit_code}
    if oom_killed:
        detail["oom_killed"] = True
    return ErrorInfo.of(code).model_copy(update={"detail": detail})
