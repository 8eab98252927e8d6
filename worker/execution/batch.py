"""The profile `batch`: run to completion, the exit code decides, the result is what it wrote."""

from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.messages import MAX_RESULT_BYTES, HostCommand
from modelyard.contract.states import Phase
from modelyard.process.crash_points import crash_point
from worker.attempts.attempt import Attempt
from worker.containers.lifecycle import ContainerLifecycle
from worker.containers.readiness import exited
from worker.engine.protocol import ContainerFacts, ContainerRuntime
from worker.model_server.results import ResultReader


class Batch:
    """Runs one container to its end."""

    def __init__(
        self, runtime: ContainerRuntime, containers: ContainerLifecycle, results: ResultReader
    ) -> None:
        self._runtime = runtime
        self._containers = containers
        self._results = results

    async def run(self, command: HostCommand, facts: ContainerFacts, attempt: Attempt) -> str:
        """Return the result as JSON text; raises `exited` or `oom_killed` if the code is not 0."""
        await self._containers.start(command, facts, attempt)
        attempt.report(Phase.INFERRING, container_id=facts.id)
        end = await self._runtime.wait_exit(facts.id)
        crash_point("worker.after_infer")
        # A child that was killed for want of memory is the program's own affair.
        if end.code != 0:
            raise exited(end)
        attempt.report(Phase.SAVING)
        return await self._results.read(await self._written(command, facts))

    async def _written(self, command: HostCommand, facts: ContainerFacts) -> bytes:
        path = command.model.result_file
        if path is not None:
            return await self._runtime.read_file(facts.id, path, max_bytes=MAX_RESULT_BYTES)
        # One byte more than is allowed, and the newline: then what is too large shows.
        output = await self._runtime.stdout_tail(facts.id, max_bytes=MAX_RESULT_BYTES + 2)
        last_line = _last_line(output)
        if last_line:
            return last_line
        if await self._runtime.log_is_full(facts.id):
            raise ModelyardError(
                ErrorCode.BAD_RESULT,
                "The log holds nothing of stdout any more: it was rotated, for it keeps the last "
                "30 MB of stdout and stderr together. Write less, or use result_file.",
            )
        raise ModelyardError(ErrorCode.BAD_RESULT, "The container wrote nothing to stdout.")


def _last_line(output: bytes) -> bytes:
    """Return the last line as a terminal shows it: a carriage return begins it anew."""
    return output.rstrip().rpartition(b"\n")[2].rpartition(b"\r")[2]
