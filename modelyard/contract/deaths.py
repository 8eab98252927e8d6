"""Why a container stopped, as an error; the exit code of its main process decides."""

from modelyard.contract.errors import ErrorCode, ErrorInfo

_KILLED = 137
"""128 + SIGKILL."""


def death_of(exit_code: int | None, *, oom_killed: bool, disk_exceeded: bool = False) -> ErrorInfo:
    """Return the error that says why a container has stopped.

    Docker's flag `OOMKilled` says that some process in the container was killed because memory ran
    out. If the main process was killed, it was that one. Otherwise the main process exited by
    itself, and the flag is only a detail. `disk_exceeded`: the worker stopped the container because
    it wrote too much to the disk.
    """
    if disk_exceeded:
        return ErrorInfo.of(ErrorCode.DISK_QUOTA_EXCEEDED)
    code = ErrorCode.OOM_KILLED if oom_killed and exit_code == _KILLED else ErrorCode.EXITED
    detail: dict[str, object] = {"exit_code": exit_code}
    if oom_killed:
        detail["oom_killed"] = True
    return ErrorInfo.of(code).model_copy(update={"detail": detail})
